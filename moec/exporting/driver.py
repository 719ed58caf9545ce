"""The export of a model: from a source, through passes, to files of a form."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import TYPE_CHECKING, Any

from moec.common.arguments import check_optional_text, check_path, known_options, options_of
from moec.common.companions import replacing_companions
from moec.common.errors import MoecError
from moec.common.once import one_at_a_time
from moec.common.progress import Progress, silent
from moec.common.replacing import check_replaceable, replacing
from moec.exporting.export_options import ExportOptions
from moec.exporting.form import ExportedPart
from moec.exporting.forms import form_for

if TYPE_CHECKING:
    from moec.passes.framework.base import Remark


@dataclasses.dataclass(frozen=True)
class Export:
    """The result of an export. ``parts``: how each MoE block, and what else the form may write in several ways, was
    written. ``remarks``: those of the passes. ``companions``: files that ``path`` needs beside it."""

    path: pathlib.Path
    form: str
    parts: list[ExportedPart]
    remarks: list[Remark]
    companions: list[pathlib.Path]

    @property
    def unwritten(self) -> list[ExportedPart]:
        """The parts that stayed graphs of standard operators, with their reasons."""
        return [part for part in self.parts if not part.written_as]


@known_options
def export(
    model: Any,
    output: str | os.PathLike[str],
    *,
    form: str | None = None,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    passes: str | None = None,
    experts: str | None = None,
    linears: str | None = None,
    cache: bool | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    profile: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Export:
    """Write a model as files that another program runs. Returns what was written.

    Raises UnsupportedError, with the nearest form that can, for what a form cannot express; MoecError for a model that
    cannot be read, a wrong option, or an output that cannot be written. Nothing that moec did not write is replaced.

    model, example_inputs, dynamic_shapes, cache, tokenizer
        As for :func:`moec.compile`.
    output
        The file or folder to write.
    form
        The reader: ``onnxruntime``, ... (:data:`moec.exporting.forms.FORMS`). None: by the suffix of ``output``.
    passes
        A level or a pipeline text. None: ``O2``, which is exact.
    experts, linears
        Formats to round the weights of experts and of dense products to, such as ``int4/32z``.
    profile
        Measurements by ``moec profile``, for every pass that takes a profile and names none.
    progress
        Called with the name of each step as it begins.
    """
    check_path("output", output)
    check_optional_text(form=form)
    options = options_of(ExportOptions, locals())
    return export_with(model, output, form, options)


@one_at_a_time
def export_with(model: Any, output: str | os.PathLike[str], form: str | None, options: ExportOptions) -> Export:
    """Do the work of :func:`export`."""
    from moec.frontend import sources

    sources.check(model)  # before anything heavy is imported, so that a mistyped name is answered at once
    chosen = form_for(model, output, form)
    _check_apart(model, output)
    check_replaceable(output, chosen.foreign_because)

    from moec.passes.framework.base import Report

    report = Report(progress=options.progress or silent)
    around = replacing_companions(output, chosen.companions)
    with around as place, replacing(output, chosen.foreign_because) as aside:
        parts = chosen.write(model, aside, pathlib.Path(output), options, report)
        placed = place(aside.parent)
    return Export(pathlib.Path(output), chosen.name, parts, report.remarks, placed)


def _check_apart(source: Any, output: str | os.PathLike[str]) -> None:
    """Raise MoecError where the output would take the place of the source, which an earlier export may have written."""
    if not isinstance(source, (str, os.PathLike)):
        return
    model, place = pathlib.Path(os.path.realpath(source)), pathlib.Path(os.path.realpath(output))
    if model.is_relative_to(place):
        what = "the model that is exported" if model == place else "the folder of the model that is exported"
        raise MoecError(f"{output}: is {what}; choose another path")
