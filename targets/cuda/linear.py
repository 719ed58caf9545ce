"""``moec.Linear`` on a GPU: a dense product whose weight may be stored in any format."""

from __future__ import annotations

import dataclasses

from tvm import relax

from moec.ir.dialect import LinearSpec, spec_of
from moec.targets.cuda.dense_products import bias_operand, multiply_matrix
from moec.targets.cuda.product_rows import computed_in, padded_inputs, prepared, uses_tf32, with_rows_of
from moec.targets.cuda.shared_scales import with_shared_scales
from moec.targets.gpu.kernels.dense_problem import dense_problem
from moec.targets.gpu.lowering.expert_groups import quantized_format
from moec.targets.gpu.lowering.expert_matrices import add_matrix, padded_name, whole_parts
from moec.targets.tvm.lowering.node_lowering import NodeLowering


def lower_linear(node: NodeLowering) -> relax.Expr:
    """Emit ``activation(x @ weight + bias)`` over the last axis of x."""
    spec = spec_of(node.node, LinearSpec)
    x, weight = computed_in(node, spec), node.needed_weight("weight")
    width, inner = weight.out_in(spec.transposed)
    dtype, stored = str(x.ty.dtype), quantized_format(weight.runs)
    types = {"dtype": dtype, "matrix_dtype": dtype, "out_dtype": str(node.tensor("x").ty.dtype), "stored": stored}
    bias = node.inputs["bias"]
    problem = dense_problem(inner, width, tf32=uses_tf32(spec, dtype), biased=bias is not None, **types)
    problem = dataclasses.replace(problem, inner=padded_inputs([problem], node.machine, spec.arithmetic))
    (problem,) = with_rows_of(spec, [problem], node.machine)
    x = prepared(node, spec, problem, x, inner)
    parts = whole_parts(weight, stored, spec.transposed)
    problem = with_shared_scales(problem, parts)
    name = padded_name(f"{weight.name}.{'columns' if spec.transposed else 'rows'}", (inner, problem.inner))
    operands = [*add_matrix(node, name, problem, parts), bias_operand(node.lowering, bias, width)]
    return multiply_matrix(node.lowering, node.node, node.machine, problem, x, operands, spec.activation)
