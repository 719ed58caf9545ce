"""The form for every program that reads ONNX: MoE blocks as functions of domain moec, all else in ONNX's operators."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any

from moec.common.errors import UnsupportedError
from moec.exporting.export_options import ExportOptions
from moec.exporting.form import ExportedPart, ExportForm
from moec.exporting.onnx_model import companions, foreign, write_model

if TYPE_CHECKING:
    import onnx_ir as ir

    from moec.passes.framework.base import Report


def _write(
    source: Any, aside: pathlib.Path, output: pathlib.Path, options: ExportOptions, report: Report
) -> list[ExportedPart]:
    from moec.passes import pipeline

    pipelines = (pipeline.BEFORE_ONNX, pipeline.FOR_ONNX)
    return write_model(source, aside, output, options, report, pipelines, _part, _check_operators)


def _check_operators(model: ir.Model) -> None:
    from moec.common.names import node_name, operator_name
    from moec.ir.dialect import DOMAIN

    for node in model.graph.all_nodes():
        if node.domain not in ("", DOMAIN):
            raise UnsupportedError(
                f"node {node_name(node)}: {operator_name(node)} is no operator of ONNX, and moec cannot spell it in "
                "such; export --for onnxruntime, which has it"
            )


def _part(model: ir.Model, name: str, report: Report) -> ExportedPart:
    """A block, whose node calls its function: otherwise it could not be written at all."""
    node = next(node for node in model.graph.all_nodes() if node.name == name)
    return ExportedPart(name, f"{node.domain}.{node.op_type}")


def _why_not(source: Any) -> str | None:
    return None


FORM = ExportForm("onnx", "any program that reads ONNX", None, _why_not, foreign, _write, companions)
