"""The form for onnxruntime: MoE blocks as its own operators, everything else in operators of ONNX."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any

from moec.exporting.export_options import ExportOptions
from moec.exporting.form import ExportedPart, ExportForm
from moec.exporting.onnx_model import SUFFIX, companions, foreign, model_in, spelled, write_model
from moec.exporting.opening_check import check_opening

if TYPE_CHECKING:
    import onnx_ir as ir

    from moec.passes.framework.base import Report

_OPERATORS = ("MoE", "QMoE")
_USES = ("use-moe", "use-qmoe", "loop-experts", "expand-dispatch")
"""The passes that say why a block is no operator."""


def _write(
    source: Any, aside: pathlib.Path, output: pathlib.Path, options: ExportOptions, report: Report
) -> list[ExportedPart]:
    parts = write_model(source, aside, output, options, report, _pipelines(), _part)
    check_opening(model_in(aside), output.name, report)
    return parts


def spelled_for_onnxruntime(source: Any, options: ExportOptions, report: Report) -> tuple[ir.Model, list[ExportedPart]]:
    """Make the model that this form writes."""
    return spelled(source, options, report, _pipelines(), _part)


def _pipelines() -> tuple[str, str]:
    from moec.passes import pipeline

    return pipeline.BEFORE_ONNXRUNTIME, pipeline.FOR_ONNXRUNTIME


def _part(model: ir.Model, name: str, report: Report) -> ExportedPart:
    operators = {node.name: node.op_type for node in model.graph if node.domain == "com.microsoft"}
    if operators.get(name) in _OPERATORS:
        return ExportedPart(name, f"com.microsoft.{operators[name]}")
    reasons = [remark.message for remark in report.remarks if remark.pass_name in _USES and remark.subject == name]
    return ExportedPart(name, "", reasons[-1] if reasons else "its experts are a graph over dispatched rows already")


def _why_not(source: Any) -> str | None:
    return None


FORM = ExportForm("onnxruntime", "onnxruntime", SUFFIX, _why_not, foreign, _write, companions)
