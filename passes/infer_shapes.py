"""Types and shapes for every value, with named symbolic sizes."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from moec.passes.framework.base import Exactness, Report


@dataclasses.dataclass(frozen=True)
class InferShapes:
    """Sets type and shape of every value that :mod:`moec.ir.shapes` can infer.

    ::

        (float[T,4] x) => (float[A,B] y) <float[4,8] w> {
           h = MatMul (x, w)
           y = Relu (h)
        }
            ->
        (float[T,4] x) => (float[A,8] y) <float[4,8] w, float[T,8] h> {
           h = MatMul (x, w)
           y = Relu (h)
        }
    """

    name: ClassVar[str] = "infer-shapes"
    exactness: ClassVar[Exactness] = "exact"

    def apply(self, model: ir.Model, report: Report) -> bool:
        from moec.ir import shapes

        before = _shapes(model)
        shapes.infer(model)
        return _shapes(model) != before


def _shapes(model: ir.Model) -> list[tuple[str | None, ir.DataType | None, ir.Shape | None]]:
    return [(value.name, value.dtype, value.shape) for node in model.graph.all_nodes() for value in node.outputs]
