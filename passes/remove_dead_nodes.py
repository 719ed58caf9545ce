"""Nodes and constants that nothing uses."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from moec.passes.framework.base import Exactness, Report


@dataclasses.dataclass(frozen=True)
class RemoveDeadNodes:
    """Removes nodes and constants that no output depends on.

    1. Nodes without a used output, and then the nodes that only these used.
    2. Constants without a user. Graph inputs stay: they are part of the model's interface.
    3. Unused optional outputs and trailing absent inputs of the nodes that stay.

    ::

        (float[T] x) => (float[T] y) {
           y = Relu (x)
           z = Exp (y)
        }
            ->
        (float[T] x) => (float[T] y) {
           y = Relu (x)
        }
    """

    name: ClassVar[str] = "remove-dead-nodes"
    exactness: ClassVar[Exactness] = "exact"

    def apply(self, model: ir.Model, report: Report) -> bool:
        from onnx_ir.passes.common import RemoveUnusedNodesPass

        return bool(RemoveUnusedNodesPass()(model).modified)
