"""The form for onnxruntime-genai: a folder with the graph, its settings, and a tokenizer."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from moec.common.errors import MoecError, UnsupportedError
from moec.common.plain_files import read_bytes
from moec.exporting.export_options import ExportOptions
from moec.exporting.form import ExportedPart, ExportForm
from moec.exporting.onnx_model import MODEL
from moec.exporting.opening_check import check_opening
from moec.exporting.sealed_folder import foreign_folder, seal_folder

if TYPE_CHECKING:
    from moec.common.tokenizers import TextFiles
    from moec.passes.framework.base import Report

_NAME = "genai"
_TOKENIZER, _SETTINGS, _TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
_COPIED = (_SETTINGS, _TEMPLATE, "special_tokens_map.json")
"""Files beside a tokenizer in a Hugging Face folder."""
_CLASS = "PreTrainedTokenizerFast"
"""Class of tokenizers that are all in ``tokenizer.json``."""


def _why_not(source: Any) -> str | None:
    from moec.frontend import gguf, huggingface

    if huggingface.is_folder(source) or gguf.is_file(source):
        return None
    return "settings and tokenizer come from folders of Hugging Face models and GGUF files; use --for onnxruntime"


def _write(
    source: Any, aside: pathlib.Path, output: pathlib.Path, options: ExportOptions, report: Report
) -> list[ExportedPart]:
    from moec.compiling.compile_options import kept_text_files
    from moec.exporting import genai_config, onnx_file
    from moec.exporting.genai_graph import name_for_genai
    from moec.exporting.onnxruntime import spelled_for_onnxruntime
    from moec.frontend.pytorch.text_cache_layers import NoCacheError

    if options.cache is False:
        raise MoecError("cache: onnxruntime-genai keeps keys and values itself; leave the option out")
    settings, text = genai_config.settings_of(source), kept_text_files(source, options.tokenizer)
    graph_options = dataclasses.replace(options, cache=True, tokenizer=None)
    try:
        model, parts = spelled_for_onnxruntime(source, graph_options, report)
    except NoCacheError as error:
        raise UnsupportedError(
            f"{error}; onnxruntime-genai needs the cache: --for onnxruntime writes it without"
        ) from error
    try:
        decoder = name_for_genai(model, settings.switches_after)
    except UnsupportedError as error:
        raise UnsupportedError(f"{source}: {error}; --for onnxruntime writes it") from error
    config = genai_config.content(decoder, settings, text.end_ids if text else settings.end_ids, MODEL)
    for remark in (*settings.remarks, *_missing(text, settings.length)):
        report.warn("export", output.name, remark)
    report.progress(f"writing {output.name}")
    aside.mkdir()
    onnx_file.write_file_and_data(model, aside / MODEL)
    check_opening(aside / MODEL, output.name, report)
    _write_json(aside / genai_config.NAME, config)
    if text is not None:
        _write_text(aside, text, _folder_of_text(source, options.tokenizer))
    seal_folder(aside)
    return parts


def _missing(text: TextFiles | None, length: int | None) -> Iterator[str]:
    from moec.exporting.genai_config import DEFAULT_LENGTH

    if text is None:
        yield "has no tokenizer, so that onnxruntime-genai takes and gives token ids alone; name one by --tokenizer"
    if length is None:
        yield f"the model names no context length; {DEFAULT_LENGTH} is written"


def _folder_of_text(source: Any, tokenizer: str | os.PathLike[str] | None) -> pathlib.Path | None:
    """Find the folder that the tokenizer is from. Returns None for a GGUF file, which holds it."""
    from moec.frontend import gguf

    if tokenizer is None and gguf.is_file(source):
        return None
    path = pathlib.Path(source if tokenizer is None else tokenizer)
    return path if path.is_dir() else path.parent


def _write_text(folder: pathlib.Path, text: TextFiles, origin: pathlib.Path | None) -> None:
    """Write the tokenizer, with its settings from the folder ``origin``, or settings made of what is known."""
    from moec.frontend.huggingface.folder import LARGEST_JSON

    (folder / _TOKENIZER).write_text(text.tokenizer, encoding="utf-8")
    if origin is None or not (origin / _SETTINGS).is_file():
        template = {} if text.chat_template is None else {"chat_template": text.chat_template}
        _write_json(folder / _SETTINGS, {"tokenizer_class": _CLASS, **text.special_tokens, **template})
        return
    for name in _COPIED:
        if (origin / name).is_file():
            (folder / name).write_bytes(read_bytes(origin / name, LARGEST_JSON))


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.write_text(f"{json.dumps(content, indent=2, ensure_ascii=False)}\n", encoding="utf-8")


FORM = ExportForm(_NAME, "onnxruntime-genai", None, _why_not, foreign_folder, _write)
