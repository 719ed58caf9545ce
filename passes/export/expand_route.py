"""Routers in ONNX operators."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from moec.common.names import node_name
from moec.ir import dialect
from moec.ir.dialect import RouteSpec
from moec.passes.export.route_spelling import RouteSpelling
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import remove_unused, replace_node, value_names
from moec.passes.graph.writer import NotDecomposableError, Writer


@dataclasses.dataclass(frozen=True)
class ExpandRoute:
    """Spells ``moec.Route`` in ONNX operators, step by step as :class:`~moec.ir.dialect.RouteSpec` has them.

    1. Experts are selected by TopK, which prefers the lower id among equal scores, as the router does.
    2. Narrow floats are computed in float32, as the router does.
    3. A router with a tolerance, for experts that are read from a file while the model runs, stays; a warning says so.

    ::

        (float[T,8] logits) => (float[T,2] w, int32[T,2] e) {
           w, e = moec.Route <k = 2, score = "softmax_topk", scale = 2.5> (logits)
        }
            ->
        (float[T,8] logits) => (float[T,2] w, int32[T,2] e) <int64[1] "w.numbers" = {2}, float "w.number" = {2.5}> {
           "w.best", "w.ids" = TopK (logits, "w.numbers")
           "w.selected" = Softmax <axis = -1> ("w.best")
           w = Mul ("w.selected", "w.number")
           e = Cast <to = 6> ("w.ids")
        }
    """

    name: ClassVar[str] = "expand-route"
    exactness: ClassVar[Exactness] = "reassociating"

    def apply(self, model: ir.Model, report: Report) -> bool:
        changed = False
        for node in [node for node in model.graph if dialect.is_moec(node, "Route")]:
            inputs, spec = dialect.inputs_of(node), dialect.spec_of(node, RouteSpec)
            if inputs["tolerance"] is not None:
                report.warn(self.name, node_name(node), "stays as it is: it has a tolerance for absent experts")
                continue
            try:
                results = RouteSpelling(Writer(node, value_names(model.graph)), spec).results()
            except NotDecomposableError as error:
                report.warn(self.name, node_name(node), f"stays as it is: {error}")
                continue
            operands = [value for value in node.inputs if value is not None]
            replace_node(node, results)
            for value in operands:
                remove_unused(model.graph, value)
            changed = True
        return changed
