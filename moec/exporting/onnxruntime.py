"""The form for onnxruntime: MoE blocks as its own operators, everything else in operators of ONNX."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any

from moec.common.errors import UnsupportedError, reporting
from moec.common.seals import foreign_file
from moec.exporting.export_options import ExportOptions
from moec.exporting.form import ExportedPart, Form
from moec.exporting.sealed_folder import foreign_folder, seal_folder

if TYPE_CHECKING:
    import onnx_ir as ir

    from moec.passes.framework.base import Pass, Report

_SUFFIX = ".onnx"
_MODEL = "model.onnx"
_OPERATORS = ("MoE", "QMoE")


def _write(
    source: Any, aside: pathlib.Path, output: pathlib.Path, options: ExportOptions, report: Report
) -> list[ExportedPart]:
    from moec.exporting import onnx_file

    if options.tokenizer is not None:
        raise UnsupportedError("onnxruntime reads no tokenizer; leave the tokenizer out")
    model, parts = _written_for_onnxruntime(source, options, report)
    report.progress(f"writing {output.name}")
    if output.suffix == _SUFFIX:
        onnx_file.write_file(model, aside)
    else:
        aside.mkdir()
        onnx_file.write_file_and_data(model, aside / _MODEL)
        seal_folder(aside)
    return parts


def _written_for_onnxruntime(
    source: Any, options: ExportOptions, report: Report
) -> tuple[ir.Model, list[ExportedPart]]:
    from moec.compiling.compile_options import with_profile
    from moec.compiling.compiler import import_model
    from moec.exporting import onnx_file
    from moec.ir.blocks import moe_blocks
    from moec.passes import pipeline
    from moec.passes.framework.shorthand import with_formats

    before = pipeline.BEFORE_ONNXRUNTIME if options.passes is None else options.passes
    chain = with_profile(with_formats(before, options.experts, options.linears), options.profile)
    model = import_model(source, options.example_inputs, options.dynamic_shapes, options.cache)
    _run(model, source, chain, report)
    blocks = [block["name"] for block in moe_blocks(model)]
    _run(model, source, pipeline.parse(pipeline.FOR_ONNXRUNTIME), report)
    onnx_file.finish(model)
    return model, [_part(model, name, report) for name in blocks] + [
        ExportedPart(block.node, "", f"was not raised: {block.reason}") for block in report.unraised
    ]


def _run(model: ir.Model, source: Any, passes: tuple[Pass, ...] | Any, report: Report) -> None:
    from moec.passes import pipeline

    for step in passes:
        report.progress(step.name)
        with reporting(step.name, source):
            pipeline.run(model, (step,), report)


def _part(model: ir.Model, name: str, report: Report) -> ExportedPart:
    operators = {node.name: node.op_type for node in model.graph if node.domain == "com.microsoft"}
    if operators.get(name) in _OPERATORS:
        return ExportedPart(name, f"com.microsoft.{operators[name]}")
    reasons = [remark.message for remark in report.remarks if remark.pass_name == "use-moe" and remark.subject == name]
    return ExportedPart(name, "", reasons[-1] if reasons else "its experts are a graph over dispatched rows already")


def _why_not(source: Any) -> str | None:
    return None


def _foreign(path: pathlib.Path) -> str | None:
    return foreign_folder(path) if path.is_dir() else foreign_file(path)


FORM = Form("onnxruntime", "onnxruntime", _SUFFIX, _why_not, _foreign, _write)
