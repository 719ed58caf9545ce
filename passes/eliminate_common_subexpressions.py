"""The same computation twice becomes one."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from moec.passes.framework.base import Exactness, Report


@dataclasses.dataclass(frozen=True)
class EliminateCommonSubexpressions:
    """Lets later computations reuse earlier equal ones.

    1. Small equal constants (at most ``limit`` elements) become one constant; weights are not compared.
    2. A node with the operator, inputs and attributes of an earlier node gives way to it. Random operators and
       control flow never do.

    ::

        (float[T] x) => (float[T] y) {
           a = Relu (x)
           b = Relu (x)
           y = Add (a, b)
        }
            ->
        (float[T] x) => (float[T] y) {
           a = Relu (x)
           y = Add (a, a)
        }
    """

    name: ClassVar[str] = "eliminate-common-subexpressions"
    exactness: ClassVar[Exactness] = "exact"

    limit: int = 64

    def apply(self, model: ir.Model, report: Report) -> bool:
        from onnx_ir.passes.common import CommonSubexpressionEliminationPass, DeduplicateInitializersPass

        constants = DeduplicateInitializersPass(size_limit=self.limit)(model)
        nodes = CommonSubexpressionEliminationPass(size_limit=self.limit)(model)
        return bool(constants.modified or nodes.modified)
