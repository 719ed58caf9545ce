"""Rows that are not rounded before they are multiplied."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from moec.common.names import node_name
from moec.ir import dialect
from moec.ir.dialect import ProductSpec
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import replace_node

_ATTRIBUTES = ("arithmetic", "activation_group")


@dataclasses.dataclass(frozen=True)
class KeepRows:
    """Lets products see their rows as they are, because operators of other programs have no arithmetic to choose.

    1. A product that rounds its rows, to 8 bits or a narrower float, computes in float32 instead, which is more exact.
       A note says so. Weights stay as they are stored. onnxruntime's kernels for weights of 8 bits round rows again.
    2. ``moec.RoundRows`` gives its rows on.

    ::

        (float[T,8] x) => (float[T,4] y) <float[4,8] w> {
           y = moec.Linear <arithmetic = "int8"> (x, w)
        }
            ->
        (float[T,8] x) => (float[T,4] y) <float[4,8] w> {
           y = moec.Linear (x, w)
        }
    """

    name: ClassVar[str] = "keep-rows"
    exactness: ClassVar[Exactness] = "lossy"

    def apply(self, model: ir.Model, report: Report) -> bool:
        changed = False
        for node in [node for node in model.graph.all_nodes() if dialect.is_moec(node)]:
            if node.op_type == "RoundRows":
                replace_node(node, [node.inputs[0]])
                changed = True
                continue
            rounded = node.attributes.get_string("arithmetic", ProductSpec.arithmetic)
            if rounded != ProductSpec.arithmetic:
                for name in _ATTRIBUTES:
                    node.attributes.pop(name, None)
                report.note(self.name, node_name(node), f"its rows are not rounded to {rounded}, but kept in float32")
                changed = True
        return changed
