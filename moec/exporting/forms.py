"""All forms of exported files, and the form that an output asks for."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from moec.common.arguments import suggestion
from moec.common.errors import MoecError, UnsupportedError
from moec.exporting import genai, gguf_file, huggingface_folder, onnxruntime, onnxruntime_moec, standard_onnx
from moec.exporting.form import ExportForm

FORMS: tuple[ExportForm, ...] = (
    onnxruntime.FORM,
    onnxruntime_moec.FORM,
    standard_onnx.FORM,
    genai.FORM,
    gguf_file.FORM,
    huggingface_folder.FORM,
)
"""In this order the forms are asked whether they are meant by an output without ``--for``."""


def form_for(source: Any, output: str | os.PathLike[str], name: str | None) -> ExportForm:
    """Find the form by its ``name``, or by the suffix of ``output`` and the source. Raises MoecError for an unknown
    name and an output that names no form; UnsupportedError for a source that the form does not take."""
    form = _named(name) if name is not None else _by_output(source, output)
    if (reason := form.why_not(source)) is not None:
        raise UnsupportedError(f"{_shown(source)}: cannot be exported for {form.name}: {reason}")
    return form


def _named(name: str) -> ExportForm:
    for form in FORMS:
        if form.name == name:
            return form
    names = [form.name for form in FORMS]
    raise MoecError(f"no form {name!r}{suggestion(name, names)}; expected one of {', '.join(names)}")


def _by_output(source: Any, output: str | os.PathLike[str]) -> ExportForm:
    suffix = pathlib.Path(output).suffix
    for form in FORMS:
        if form.suffix is not None and form.suffix == suffix and form.why_not(source) is None:
            return form
    for form in FORMS:
        if suffix and form.suffix == suffix:
            return form  # its reason against the source is the most helpful answer
    raise MoecError(
        f"{output}: the name does not say which form to write; name it by --for: "
        + ", ".join(f"{form.name} ({form.reader})" for form in FORMS)
    )


def _shown(source: Any) -> str:
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else type(source).__name__
