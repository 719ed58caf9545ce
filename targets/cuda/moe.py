"""The moec operators on a GPU: which kernels they become, with which weights and intermediate results.

======================  ==============================================================================================
``moec.Route``          route (, capacity)
``moec.Experts``        dispatch, grouped product of gathered rows with the activation, grouped product back to the
                        order of the pairs, combine
``moec.GroupedMatMul``  dispatch, grouped product back to the order of the pairs, separate
``moec.MoE``            those of Route, then those of Experts: five launches, or four for few tokens
``moec.Linear``         a matrix product that TVM schedules
======================  ==============================================================================================

Products take one of several ways by the number of tokens (:mod:`.grouped_products`). No launch waits for the host:
grids come from the upper bound of what routing can ask for. Quantised matrices stay as they are stored where
all experts have one format, and are decoded to the type of the tokens else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, te

from moec.errors import UnsupportedError
from moec.ir.dialect import ExpertsSpec, LinearSpec, ProductSpec, spec_of
from moec.ir.encodings import Encoded
from moec.targets.cuda.dense import multiply
from moec.targets.cuda.expert_matrices import add_matrix, as_stored, common_format, down_parts, up_parts
from moec.targets.cuda.grouped_products import GroupedProducts
from moec.targets.cuda.kernels import capacity, combine, route
from moec.targets.cuda.kernels.activation import activate, experts_epilogue
from moec.targets.cuda.kernels.grouped_problem import GroupedProblem, interleave
from moec.targets.cuda.moe_kernels import (
    CAPACITY,
    COMBINE,
    ROUTE,
    SEPARATE,
    RowsProblem,
)
from moec.targets.tvm.heavy import HeavyConverter, LoweringContext
from moec.targets.tvm.node_lowering import NodeLowering
from moec.targets.tvm.routing import RoutingKernels, lower_route
from moec.targets.tvm.stored_weights import split

_ROUTING = RoutingKernels(ROUTE, CAPACITY, route.route, capacity.capacity)


def converters(architecture: str) -> Mapping[str, HeavyConverter]:
    """Of the moec domain, for GPUs of an architecture."""

    def converter(lower: Callable[[NodeLowering], Any]) -> HeavyConverter:
        def convert(lowering: LoweringContext, node: ir.Node) -> Any:
            return lower(NodeLowering(lowering, node, architecture))

        return convert

    return {
        "moec.Route": converter(lambda node: lower_route(node, _ROUTING)),
        "moec.Experts": converter(_lower_experts),
        "moec.GroupedMatMul": converter(_lower_grouped_matmul),
        "moec.Linear": converter(_lower_linear),
        "moec.MoE": converter(lambda node: _Experts(node).lower(*lower_route(node, _ROUTING))),
    }


def _lower_experts(node: NodeLowering) -> relax.Expr:
    weights, ids = (node.lowering.tensor(node.input(name)) for name in ("weights", "experts"))
    return _Experts(node).lower(weights, node.cast(ids, "int32"))


class _Experts:
    """The experts of a node: two products with an activation between them."""

    def __init__(self, node: NodeLowering) -> None:
        self._node = node
        self._spec = spec_of(node.node, ExpertsSpec)
        self._up, self._down = node.needed_weight("up"), node.needed_weight("down")
        self._gate = node.weight("gate") if self._spec.gate_layout == "separate" else None
        self._x = _computed_in(node, self._spec)
        self._dtype = str(self._x.ty.dtype)

    def lower(self, weights: relax.Expr, ids: relax.Expr) -> relax.Expr:
        node, spec = self._node, self._spec
        first, second = self._problems(str(weights.ty.dtype))
        products = GroupedProducts(node, [first, second], ids, weights)
        matrix = add_matrix(node, f"{self._up.name}.rows", first, up_parts(spec, self._up, self._gate, first))
        up = [*matrix, _bias(node, "up_bias", first, self._up_bias())]
        hidden = products.multiply(first, [self._x, *up], products.places, experts_epilogue(spec), spec.activation)
        matrix = add_matrix(node, f"{self._down.name}.rows", second, down_parts(spec, self._down, second))
        down = [*matrix, _bias(node, "down_bias", second, node.bias("down_bias"))]
        results = products.multiply(second, [hidden, *down], products.pairs, lambda total: total)
        return self._combine(weights, ids, results, second)

    def _problems(self, routing_dtype: str) -> tuple[GroupedProblem, GroupedProblem]:
        spec, dtype = self._spec, self._dtype
        hidden, inner = self._up.out_in(spec.up_transposed)
        if spec.gated and spec.gate_layout != "separate":
            hidden //= 2
        width, _ = self._down.out_in(spec.down_transposed)
        types: dict[str, Any] = {"dtype": dtype, "matrix_dtype": dtype, "routing_dtype": routing_dtype}
        # Units that an expert does not have are zeros, which are packed as floats.
        up, down = common_format(self._up, self._gate), common_format(self._down)
        if spec.hidden_sizes:
            up = down = None
        first = GroupedProblem(
            self._up.experts,
            inner,
            hidden,
            gated=spec.gated,
            gathered=True,
            weighted=spec.weight_on_input,
            stored=up,
            **types,
            out_dtype=dtype,
        )
        return first, GroupedProblem(self._down.experts, hidden, width, scattered=True, stored=down, **types)

    def _up_bias(self) -> np.ndarray | None:
        """[E, columns]."""
        node, spec = self._node, self._spec
        up = node.bias("up_bias")
        if not spec.gated:
            return up
        if spec.gate_layout == "separate":
            gate = node.bias("gate_bias")
        else:
            gate, up = (None, None) if up is None else split(spec, up)
        if gate is None and up is None:
            return None
        given = up if gate is None else gate
        assert given is not None
        parts = [np.zeros_like(given) if part is None else part for part in (gate, up)]
        return interleave(parts[0][..., None], parts[1][..., None])[..., 0]

    def _combine(self, weights: relax.Expr, ids: relax.Expr, results: relax.Expr, second: GroupedProblem) -> relax.Expr:
        node, spec = self._node, self._spec
        x = node.tensor("x")
        dtype = str(x.ty.dtype)
        types: dict[str, Any] = {"weight_dtype": str(weights.ty.dtype), "pair_dtype": str(results.ty.dtype)}
        options: dict[str, Any] = {"weighted": not spec.weight_on_input, "identity_experts": spec.identity_experts}
        kernel = combine.combine(second.experts, second.width, dtype, **options, **types)
        chosen = node.select(COMBINE, RowsProblem(second.width, (dtype, *types.values())))
        output = relax.TensorType((ids.ty.shape[0], second.width), dtype)
        return node.call(chosen, kernel, [x, weights, ids, results], [output], options)[0]


def _lower_grouped_matmul(node: NodeLowering) -> relax.Expr:
    spec = spec_of(node.node, ProductSpec)
    weight, dtype = node.needed_weight("weights"), str(node.tensor("x").ty.dtype)
    x = _computed_in(node, spec)
    inner, width = weight.shape
    stored = str(x.ty.dtype)
    problem = GroupedProblem(
        weight.experts, inner, width, gathered=True, scattered=True, dtype=stored, matrix_dtype=stored
    )
    ids = node.cast(node.lowering.tensor(node.input("experts")), "int32")
    tokens, slots = ids.ty.shape
    no_weights = node.lowering.emit(relax.op.zeros((tokens, slots), "float32"))
    products = GroupedProducts(node, [problem], ids, no_weights)
    matrix = add_matrix(node, f"{weight.name}.rows", problem, lambda expert: [Encoded(weight.decoded(expert, True))])
    bias = _bias(node, "bias", problem, node.bias("bias"))
    results = products.multiply(problem, [x, *matrix, bias], products.pairs, lambda total: total)
    kernel = combine.separate(problem.experts, width, dtype)
    chosen = node.select(SEPARATE, RowsProblem(width, (dtype,)))
    output = relax.TensorType((tokens, slots, width), dtype)
    return node.call(chosen, kernel, [ids, results], [output], {})[0]


def _lower_linear(node: NodeLowering) -> relax.Expr:
    """``activation(x @ weight + bias)`` over the last axis of x."""
    spec = spec_of(node.node, LinearSpec)
    x, weight = _computed_in(node, spec), node.needed_weight("weight")
    width, inner = weight.out_in(spec.transposed)
    dtype = str(x.ty.dtype)
    matrix = node.lowering.add_weight(
        f"{weight.name}.matrix.{dtype}",
        (inner, width),
        dtype,
        lambda: as_stored(weight.decoded(0, spec.transposed), dtype),
    )
    result = node.lowering.emit(multiply(node.lowering, x, matrix))
    if node.inputs["bias"] is not None:
        result = node.lowering.emit(relax.op.add(result, node.cast(node.lowering.tensor(node.input("bias")), dtype)))
    activation = ExpertsSpec(activation=spec.activation)

    def activated(source: Any) -> Any:
        return te.compute(
            source.shape,
            lambda *at: activate(activation, source(*at).astype("float32")).astype(dtype),
            name="activated",
        )

    if spec.activation != "identity":
        (result,) = node.lowering.compute(activated, [result], spec.activation)
    return node.cast(result, str(node.tensor("x").ty.dtype))


def _computed_in(node: NodeLowering, spec: ProductSpec) -> relax.Expr:
    """The tokens in the type that products take: their own, or bfloat16 where that is the arithmetic asked for."""
    x = node.tensor("x")
    return node.cast(x, "bfloat16") if spec.arithmetic == "bfloat16" else x


def _bias(node: NodeLowering, role: str, problem: GroupedProblem, given: np.ndarray | None) -> relax.Expr:
    """The biases [E, columns] in float32, zeros where there are none. Raises UnsupportedError for another shape."""
    shape = (problem.experts, problem.columns)
    if given is None:
        return node.lowering.add_weight(
            f"zeros.{shape[0]}x{shape[1]}", shape, "float32", lambda: np.zeros(shape, np.float32)
        )
    if given.shape != shape:
        raise UnsupportedError(
            f"{role} has {list(given.shape)} elements in the order of the kernel; expected {list(shape)}"
        )
    return node.lowering.add_weight(f"{node.name}.{role}", shape, "float32", lambda: as_stored(given, "float32"))
