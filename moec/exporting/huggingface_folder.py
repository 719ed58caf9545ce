"""Folders of Hugging Face models with other experts, or other types of floats, and everything else as the source has
it."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any

from moec.common.errors import MoecError, UnsupportedError
from moec.exporting.changing_passes import FilePipeline, changing_passes
from moec.exporting.export_options import ExportOptions
from moec.exporting.form import ExportedPart, ExportForm
from moec.exporting.new_paths import foreign_because

if TYPE_CHECKING:
    import onnx_ir as ir

    from moec.exporting.dense_changes import DenseChange
    from moec.exporting.folder_contents import FolderContents
    from moec.exporting.layer_changes import LayerChange
    from moec.passes.framework.base import Report


def why_not(source: Any) -> str | None:
    """Explain why a source cannot be written as a folder of a Hugging Face model."""
    from moec.frontend import gguf, huggingface

    if huggingface.is_folder(source):
        return None
    if gguf.is_file(source):
        return "a GGUF file becomes a GGUF file: name the output *.gguf"
    return "only folders of Hugging Face models become such folders: config.json and tensors come from them"


def write(
    source: Any, path: pathlib.Path, _place: pathlib.Path, options: ExportOptions, report: Report
) -> list[ExportedPart]:
    """Write a folder with the experts and types that the passes make. Without such passes it is a copy.

    Raises UnsupportedError for what a folder cannot say: numbers of experts, or of those chosen, that differ between
    layers; experts whose tensors are not found; new numbers of quantised weights.
    """
    _check_options(options)
    passes = changing_passes(options)

    from moec.exporting.folder_contents import FolderContents

    contents = FolderContents.of(pathlib.Path(source))
    if passes.changing:
        contents = contents.after(*_changes(contents, passes, report), report)
    report.progress("writing")
    contents.write(path, report)
    return contents.parts


def _changes(
    contents: FolderContents, passes: FilePipeline, report: Report
) -> tuple[list[LayerChange], list[DenseChange]]:
    """Run the passes on the graph of the folder and compare its layers of experts and dense products with those
    before."""
    from moec.exporting.dense_changes import DenseChange
    from moec.exporting.layer_changes import LayerState, change_of
    from moec.frontend import huggingface
    from moec.passes import pipeline

    report.progress("importing")
    model = huggingface.import_folder(contents.folder, cache=False)
    for step in passes.finding:
        report.progress(step.name)
        pipeline.run(model, (step,), report)
    layers = [LayerState.of(node) for node in _layers(model)]
    dense = _dense(model)
    for step in passes.changing:
        report.progress(step.name)
        pipeline.run(model, (step,), report)
    report.progress("comparing")
    changes = [change_of(layer) for layer in layers]
    routers = {state.router.node for change in changes for state in (change.before, change.after) if state.router}
    changed = [node for node, weight in _dense(model).items() if dense.get(node) is not weight and node not in routers]
    return changes, [DenseChange.of(node) for node in changed]


def _dense(model: ir.Model) -> dict[ir.Node, ir.Value | None]:
    """The products with dense weights, and these."""
    from moec.ir.dialect import is_moec

    return {node: node.inputs[1] for node in model.graph if is_moec(node, "Linear")}


def _layers(model: ir.Model) -> list[ir.Node]:
    from moec.ir.dialect import has_experts

    return [node for node in model.graph if has_experts(node)]


def _check_options(options: ExportOptions) -> None:
    if options.tokenizer is not None:
        raise UnsupportedError("tokenizer: a folder keeps the one that it has; leave the option out")
    if options.cache is not None:
        raise MoecError("cache: transformers decides that itself; leave the option out")


FORM = ExportForm("huggingface", "transformers, vLLM", "", why_not, foreign_because, write)
