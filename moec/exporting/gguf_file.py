"""GGUF files with other experts, or other formats of weights, and everything else as the source has it."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any

from moec.common.errors import MoecError, UnsupportedError
from moec.exporting.changing_passes import changing_passes
from moec.exporting.export_options import ExportOptions
from moec.exporting.form import ExportedPart, ExportForm
from moec.exporting.new_paths import foreign_because

if TYPE_CHECKING:
    from moec.passes.framework.base import Report


def why_not(source: Any) -> str | None:
    """Explain why a source cannot be written as a GGUF file."""
    from moec.frontend import gguf

    return None if gguf.is_file(source) else "only GGUF files become GGUF files (folders become folders)"


def write(
    source: Any, path: pathlib.Path, _place: pathlib.Path, options: ExportOptions, report: Report
) -> list[ExportedPart]:
    """Write a GGUF file with the experts and formats that the passes make. Without such passes it is a copy.

    Raises UnsupportedError for what GGUF cannot say: numbers of experts, or of those chosen, that differ between
    layers; formats that it does not have, and that differ between the experts of a layer.
    """
    _check_options(options)
    changing = changing_passes(options).changing  # a GGUF file names its layers of experts

    from moec.exporting.gguf_tensors import dense_products, new_file
    from moec.exporting.layer_changes import LayerState, change_of
    from moec.frontend.gguf.file.reader import read_file
    from moec.frontend.gguf.file.writer import write_file
    from moec.frontend.gguf.model import build_model
    from moec.passes import pipeline
    from moec.passes.infer_shapes import InferShapes

    report.progress("importing")
    file = read_file(source)
    model, builder = build_model(file, with_cache=False)
    InferShapes().apply(model, report)  # passes cut columns only of values whose sizes are known
    layers = [(LayerState.of(layer.node), layer.names) for layer in builder.expert_layers]
    products = dense_products(builder, model)
    for step in changing:
        report.progress(step.name)
        pipeline.run(model, (step,), report)
    report.progress("comparing")
    changes = [(change_of(before), names) for before, names in layers]
    if (
        changing
        and all(change.is_none for change, _ in changes)
        and not any(product.is_changed for product in products)
    ):
        words = (
            "the passes change none of its" if changes else "has no experts, and the passes change none of its other"
        )
        raise UnsupportedError(f"{source}: {words} weights")
    new = new_file(builder, changes, products, report)
    report.progress("writing")
    write_file(path, file, new.numbers, new.tensors)
    return new.parts


def _check_options(options: ExportOptions) -> None:
    if options.tokenizer is not None:
        raise UnsupportedError("tokenizer: a GGUF file keeps the one that it has; leave the option out")
    if options.cache is not None:
        raise MoecError("cache: llama.cpp decides that itself; leave the option out")


FORM = ExportForm("gguf", "llama.cpp", ".gguf", why_not, foreign_because, write)
