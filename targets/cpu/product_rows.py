"""The rows of a product as its arithmetic asks for them, where the product that reads them is one of floats."""

from __future__ import annotations

from tvm import relax

from moec.ir.dialect import ProductSpec
from moec.targets.cpu.kernels.round_rows import ROUND, RoundedRows
from moec.targets.tvm.kernels.group_scales import ELEMENTS
from moec.targets.tvm.kernels.kernel import KernelCall
from moec.targets.tvm.lowering.node_lowering import NodeLowering
from moec.targets.tvm.sizes.shapes import static_size


def arithmetic_of(spec: ProductSpec) -> tuple[str, int]:
    """The arithmetic of the kernel, and its groups of activations: a processor multiplies no floats of 8 or 4
    bits."""
    return ("float32", 0) if spec.arithmetic in ELEMENTS else (spec.arithmetic, spec.activation_group)


def rounded(node: NodeLowering, spec: ProductSpec, x: relax.Expr, width: int) -> relax.Expr:
    """``x`` [M, at least width] with ``width`` columns rounded to small floats, if the arithmetic asks for that; ``x``
    itself for others."""
    if spec.arithmetic not in ELEMENTS:
        return x
    rows, stride = x.ty.shape[0], static_size(x.ty.shape[1])
    assert stride is not None, "rows have a constant width"
    problem = RoundedRows(width, stride, spec.activation_group, str(x.ty.dtype), spec.arithmetic)
    called = KernelCall(node.select((ROUND,), problem), ROUND.build(problem), [x], {"group": problem.group})
    return node.call(called, [relax.TensorType((rows, stride), problem.dtype)])[0]
