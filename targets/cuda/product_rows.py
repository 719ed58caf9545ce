"""The rows of a product as its arithmetic asks for them."""

from __future__ import annotations

from tvm import relax

from moec.ir.dialect import ProductSpec
from moec.targets.cuda.kernels.round_rows import ROUND, Rounding
from moec.targets.tvm.kernel import KernelCall
from moec.targets.tvm.node_lowering import NodeLowering
from moec.targets.tvm.nodes import flatten, reshape, static_size


def computed_in(node: NodeLowering, spec: ProductSpec) -> relax.Expr:
    """The tokens x[..., K] as products take them: as they are, in bfloat16, or in their own type, but rounded to what
    int8 can say."""
    x = node.tensor("x")
    if spec.arithmetic == "bfloat16":
        return node.cast(x, "bfloat16")
    if spec.arithmetic == "int8":
        return _rounded(node, spec, x)
    return x


def uses_tf32(spec: ProductSpec, dtype: str) -> bool:
    """Whether products round rows of that type to tf32; floats of 16 bits are such numbers already."""
    return spec.arithmetic == "tf32" and dtype == "float32"


def rounding_of(spec: ProductSpec, rows: relax.Expr) -> Rounding:
    """How rows[..., K] are rounded for arithmetic ``int8``."""
    inner = static_size(rows.ty.shape[-1])
    assert inner is not None, "the weight's shape says how many inputs there are"
    return Rounding(inner, spec.activation_group, str(rows.ty.dtype))


def _rounded(node: NodeLowering, spec: ProductSpec, x: relax.Expr) -> relax.Expr:
    rounding, shape = rounding_of(spec, x), list(x.ty.shape)
    rows = x if len(shape) == 2 else flatten(node.lowering, x, len(shape) - 1)
    output = relax.TensorType(rows.ty.shape, rounding.dtype)
    chosen = node.select((ROUND,), rounding)
    called = KernelCall(chosen, ROUND.build(rounding), [rows], {"group": rounding.group})
    (result,) = node.call(called, [output])
    return result if len(shape) == 2 else reshape(node.lowering, result, shape)
