"""The moec operators on a CPU: which kernels they become, with which weights and intermediate results.

======================  ==============================================================================================
``moec.Route``          route (, capacity)
``moec.Experts``        dispatch, gather, grouped_gemm with the activation, grouped_gemm back to pair order, combine
``moec.GroupedMatMul``  dispatch, gather, grouped_gemm back to pair order, separate
``moec.MoE``            those of Route, then those of Experts
``moec.Linear``         gemm
======================  ==============================================================================================

With int8 arithmetic, quantize_rows comes before the gathering (of every token once) and between the two products.

One artifact serves every number of tokens: the kernels read the number of rows of each expert when they run and choose
the height of their register tiles, or matrix tiles, by it, down to the matrix-vector product of a single row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax

from moec.errors import UnsupportedError
from moec.ir.dialect import ExpertsSpec, ProductSpec, attributes_of, spec_of
from moec.ir.weights.experts import ExpertWeights, Part
from moec.ir.weights.stored import StoredWeight
from moec.targets.cpu.grouped_product import GroupedProducts, Sorted, check
from moec.targets.cpu.kernels import capacity, combine, pack_experts, route
from moec.targets.cpu.kernels.activation import experts_epilogue
from moec.targets.cpu.kernels.grouped_gemm import GroupedProblem
from moec.targets.cpu.linear import lower_linear
from moec.targets.cpu.machine import Machine
from moec.targets.cpu.moe_kernels import CAPACITY, RESULTS, ROUTE, RowsProblem
from moec.targets.cpu.stored_weights import add_weights, formats_of
from moec.targets.tvm.heavy import HeavyConverter, LoweringContext
from moec.targets.tvm.node_lowering import NodeLowering
from moec.targets.tvm.routing import RoutingKernels, lower_route

_ACTIVATIONS_WITH_ZEROS = ("relu", "relu2")
"""Those that are exactly zero for many inputs."""


class MoeOps:
    """Converters of the moec domain for one machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def converters(self) -> Mapping[str, HeavyConverter]:
        return {
            "moec.Route": self._converter(_lower_route),
            "moec.Experts": self._converter(_lower_experts),
            "moec.GroupedMatMul": self._converter(_lower_grouped_matmul),
            "moec.Linear": self._converter(lower_linear),
            "moec.MoE": self._converter(lambda node: _Experts(node).lower(*_lower_route(node))),
        }

    def _converter(self, lower: Callable[[NodeLowering], Any]) -> HeavyConverter:
        def convert(lowering: LoweringContext, node: ir.Node) -> Any:
            return lower(NodeLowering(lowering, node, self._machine))

        return convert


def _lower_route(node: NodeLowering) -> tuple[relax.Expr, relax.Expr]:
    return lower_route(node, RoutingKernels(ROUTE, CAPACITY, route.route, capacity.capacity))


def _lower_experts(node: NodeLowering) -> relax.Expr:
    weights, ids = (node.lowering.tensor(node.input(name)) for name in ("weights", "experts"))
    return _Experts(node).lower(weights, node.cast(ids, "int32"))


def _lower_grouped_matmul(node: NodeLowering) -> relax.Expr:
    spec = spec_of(node.node, ProductSpec)
    x, weight, bias = node.tensor("x"), node.needed_weight("weights"), node.bias("bias")
    inner, width = weight.shape
    problem = _problem(node, spec, weight, inner=inner, width=width)
    ids = node.cast(node.lowering.tensor(node.input("experts")), "int32")
    tokens, slots = ids.ty.shape
    products = GroupedProducts(node)
    ordered = products.dispatch(ids, problem.experts)
    no_weights = node.lowering.emit(relax.op.zeros((tokens, slots), "float32"))
    rows = products.gather(x, no_weights, ordered, problem, weighted=False)
    packed = add_weights(
        node.lowering, f"{weight.name}.tiles", problem, lambda expert: [weight.encoded(expert, transposed=True)]
    )
    packed_bias = _add_bias(node, "bias", problem, [bias])
    pairs = products.multiply(problem, rows, ordered, packed, packed_bias, lambda total: total, {"activation": "none"})
    dtype = str(x.ty.dtype)
    kernel = combine.separate(problem.experts, width, int(pairs.ty.shape[1]), dtype)
    output = relax.TensorType((tokens, slots, width), dtype)
    return node.call(node.select(RESULTS, RowsProblem(width, dtype, summed=False)), kernel, [ids, pairs], [output], {})[
        0
    ]


class _Experts:
    """The experts of a node: two products with an activation between them."""

    def __init__(self, node: NodeLowering) -> None:
        self._node = node
        self._weights = weights = ExpertWeights(node.node)
        self._spec = spec = weights.spec
        before = [weights.operand(part) for part in weights.before]
        hidden, sizes = weights.hidden, spec.hidden_sizes
        self._first = _problem(node, spec, *before, inner=weights.inner, width=hidden, gated=spec.gated, widths=sizes)
        second = _problem(node, spec, weights.operand("down"), inner=hidden, width=weights.width, inners=sizes)
        self._second = self._skipping_zeros(second) if spec.activation in _ACTIVATIONS_WITH_ZEROS else second

    def _skipping_zeros(self, second: GroupedProblem) -> GroupedProblem:
        """The product of the hidden values without those that are zero; with them where a weight is infinite or NaN,
        for then zero times it is NaN."""
        skipping = dataclasses.replace(second, rows_have_zeros=True)
        return skipping if skipping.skips_zeros and self._weights.operand("down").has_finite_floats() else second

    def lower(self, weights: relax.Expr, ids: relax.Expr) -> relax.Expr:
        node, spec, weights_of = self._node, self._spec, self._weights
        x = node.tensor("x")
        products = GroupedProducts(node)
        ordered = products.dispatch(ids, self._first.experts)
        rows = products.gather(x, weights, ordered, self._first, weighted=spec.weight_on_input)
        hidden = products.multiply(
            self._first,
            rows,
            ordered,
            self._packed(self._first, weights_of.before),
            _add_bias(node, "up_bias", self._first, [weights_of.bias(part) for part in weights_of.before]),
            experts_epilogue(spec),
            {"activation": _activation_of(spec)},
            next_problem=self._second,
        )
        pairs = products.multiply(
            self._second,
            self._hidden_rows(products, hidden, ordered),
            ordered,
            self._packed(self._second, ["down"]),
            _add_bias(node, "down_bias", self._second, [weights_of.bias("down")]),
            lambda total: total,
            {"activation": "none"},
        )
        return self._combine(x, weights, ids, pairs)

    def _hidden_rows(self, products: GroupedProducts, hidden: relax.Expr, ordered: Sorted) -> tuple[relax.Expr, ...]:
        if self._second.arithmetic != "int8":
            return (hidden,)
        from moec.targets.cpu.kernels.gather import SPARE_ROWS

        return products.quantize(hidden, self._second, ordered.pairs + SPARE_ROWS)

    def _packed(self, problem: GroupedProblem, parts: Sequence[Part]) -> list[relax.Var]:
        """The parts that share tiles, named by the last operand that holds one."""
        weights = self._weights
        name = f"{weights.operand(parts[-1]).name}.tiles"
        return add_weights(
            self._node.lowering, name, problem, lambda expert: [weights.encoded(part, expert) for part in parts]
        )

    def _combine(self, x: relax.Expr, weights: relax.Expr, ids: relax.Expr, pairs: relax.Expr) -> relax.Expr:
        spec, problem, dtype = self._spec, self._second, str(x.ty.dtype)
        kernel = combine.combine(
            problem.experts,
            problem.width,
            int(pairs.ty.shape[1]),
            dtype,
            weighted=not spec.weight_on_input,
            identity_experts=spec.identity_experts,
            weight_dtype=str(weights.ty.dtype),
            limit=spec.output_limit,
        )
        output = relax.TensorType((ids.ty.shape[0], problem.width), dtype)
        chosen = self._node.select(RESULTS, RowsProblem(problem.width, dtype))
        attributes = {"weighted": not spec.weight_on_input}
        return self._node.call(chosen, kernel, [x, weights, ids, pairs], [output], attributes)[0]


def _problem(
    node: NodeLowering,
    spec: ProductSpec,
    *weights: StoredWeight,
    inner: int,
    width: int,
    gated: bool = False,
    inners: tuple[int, ...] = (),
    widths: tuple[int, ...] = (),
) -> GroupedProblem:
    formats, format_of = formats_of(*weights)
    problem = GroupedProblem(
        weights[0].experts,
        inner,
        width,
        gated,
        node.machine,
        formats,
        format_of,
        spec.arithmetic,
        spec.activation_group,
        inners,
        widths,
    )
    check(problem)
    return problem


def _add_bias(node: NodeLowering, role: str, problem: GroupedProblem, parts: Sequence[np.ndarray | None]) -> relax.Expr:
    shapes = [part.shape for part in parts if part is not None]
    expected = (problem.experts, problem.width)
    if any(shape != expected for shape in shapes):
        raise UnsupportedError(f"{role} has shapes {shapes}; expected {list(expected)}")
    name = f"{node.name}.{role}.tiles"
    return node.lowering.add_weight(name, problem.bias_shape, "float32", lambda: pack_experts.pack_bias(problem, parts))


def _activation_of(spec: ExpertsSpec) -> str:
    extras = [
        f"{name} {getattr(spec, name):g}" for name in ("alpha", "limit", "up_offset") if name in attributes_of(spec)
    ]
    return ", ".join([spec.activation, *extras])
