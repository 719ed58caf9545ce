"""``moec.Linear`` on a CPU: a dense product whose weight may be stored in any format."""

from __future__ import annotations

from typing import Any

from tvm import relax

from moec.ir.dialect import ExpertsSpec, LinearSpec, spec_of
from moec.targets.cpu.expert_steps import check
from moec.targets.cpu.kernels.activation import activate
from moec.targets.cpu.kernels.grouped_gemm import PackedProduct
from moec.targets.cpu.matmul import multiply_packed
from moec.targets.cpu.packed_weights import formats_of
from moec.targets.cpu.product_rows import arithmetic_of, rounded
from moec.targets.tvm.lowering.node_lowering import NodeLowering
from moec.targets.tvm.lowering.nodes import flatten, reshape


def lower_linear(node: NodeLowering) -> relax.Expr:
    """``activation(x @ weight + bias)`` over the last axis of x."""
    spec = spec_of(node.node, LinearSpec)
    x, weight = node.tensor("x"), node.needed_weight("weight")
    width, inner = weight.out_in(spec.transposed)
    formats, _ = formats_of(weight)
    arithmetic, group = arithmetic_of(spec)
    problem = PackedProduct(
        1, inner, width, False, node.machine, formats, arithmetic=arithmetic, activation_group=group
    )
    check(problem)
    shape = list(x.ty.shape)
    bias = node.inputs["bias"]

    def epilogue(total: Any) -> Any:
        return activate(ExpertsSpec(activation=spec.activation), total)

    result = multiply_packed(
        node.lowering,
        node.node,
        problem,
        rounded(node, spec, flatten(node.lowering, x, len(shape) - 1), inner),
        f"{weight.name}{'.transposed' if spec.transposed else ''}",
        lambda expert: [weight.encoded(expert, spec.transposed)],
        None if bias is None else node.cast(node.lowering.tensor(bias), str(x.ty.dtype)),
        epilogue,
        activation=spec.activation,
    )
    return reshape(node.lowering, result, [*shape[:-1], width])
