"""The moec operators on a CPU: which kernels they become, with which weights and intermediate results.

======================  ==============================================================================================
``moec.Route``          route (, capacity)
``moec.Experts``        dispatch, gather, grouped_gemm with the activation, grouped_gemm back to pair order, combine
``moec.Dispatch``       dispatch_rows
``moec.GroupedMatMul``  dispatch (of sorted rows, into blocks), gather, grouped_gemm, trim
``moec.Combine``        combine_placed
``moec.MoE``            those of Route, then those of Experts
``moec.Linear``         gemm
======================  ==============================================================================================

With int8 arithmetic, quantize_rows comes before the gathering (of every token once) and between the two steps; with
fp8 arithmetic round_rows, and products are those of floats.

One artifact serves every number of tokens: the kernels read the number of rows of each expert when they run and choose
the height of their register tiles, or matrix tiles, by it, down to the matrix-vector product of a single row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from tvm import relax

from moec.common.errors import UnsupportedError
from moec.ir.dialect import ExpertsSpec, ProductSpec, attributes_of
from moec.ir.expert_weights import ExpertWeights, Part
from moec.ir.weights.stored import StoredWeight
from moec.targets.cpu.expert_steps import ExpertSteps, Sorted, check
from moec.targets.cpu.kernels import pack_experts
from moec.targets.cpu.kernels.activation import experts_epilogue
from moec.targets.cpu.kernels.capacity import CAPACITY
from moec.targets.cpu.kernels.combine import COMBINE, COMBINE_PLACED, TRIM
from moec.targets.cpu.kernels.gather import SPARE_ROWS
from moec.targets.cpu.kernels.grouped_gemm import PackedProduct
from moec.targets.cpu.kernels.route import ROUTE
from moec.targets.cpu.linear import lower_linear
from moec.targets.cpu.packed_weights import add_weights, formats_of
from moec.targets.cpu.product_rows import arithmetic_of, rounded
from moec.targets.tvm.heavy.experts import Pairs, Routing
from moec.targets.tvm.heavy.route import lower_route
from moec.targets.tvm.kernels.activation import identity
from moec.targets.tvm.kernels.kernel import Kernel
from moec.targets.tvm.lowering.node_lowering import NodeLowering

_ACTIVATIONS_WITH_ZEROS = ("relu", "relu2")
"""Those that are exactly zero for many inputs."""


class CpuExpertOps:
    """The processor's part of :mod:`moec.targets.tvm.heavy.experts`."""

    combine: Kernel = COMBINE
    combine_placed: Kernel = COMBINE_PLACED
    trim: Kernel = TRIM

    def dispatch(self, node: NodeLowering, ids: relax.Expr, experts: int) -> Sequence[relax.Expr]:
        return ExpertSteps(node).dispatch_rows(ids, experts)

    def route(self, node: NodeLowering) -> Routing:
        return lower_route(node, ROUTE, CAPACITY)

    def linear(self, node: NodeLowering) -> relax.Expr:
        return lower_linear(node)

    def experts(self, node: NodeLowering, weights: ExpertWeights, routing: Routing, capacity: int) -> Pairs:
        return _CpuExperts(node, weights).lower(*routing)

    def grouped_matmul(self, node: NodeLowering, spec: ProductSpec, weight: StoredWeight, routing: Routing) -> Pairs:
        return _multiply(node, spec, weight, *routing)


def _multiply(
    node: NodeLowering, spec: ProductSpec, weight: StoredWeight, no_weights: relax.Expr, ids: relax.Expr
) -> Pairs:
    """The product of a node that has one, with its bias."""
    x, bias = node.tensor("x"), node.bias("bias")
    inner, width = weight.shape
    problem = _problem(node, spec, weight, inner=inner, width=width)
    steps = ExpertSteps(node)
    packed = add_weights(
        node.lowering, f"{weight.name}.tiles", problem, lambda expert: [weight.encoded(expert, transposed=True)]
    )
    ordered = steps.streamed(weight.name, ids, steps.dispatch(ids, problem.experts), [(problem, packed)])
    x = rounded(node, spec, x, inner)
    rows = steps.gather(x, no_weights, ordered, problem, weighted=False)
    packed_bias = _add_bias(node, "bias", problem, [bias])
    pairs = steps.multiply(problem, rows, ordered, packed, packed_bias, identity, {"activation": "none"})
    return Pairs(ids, pairs)


class _CpuExperts:
    """The experts of a node: two products with an activation between them."""

    def __init__(self, node: NodeLowering, weights: ExpertWeights) -> None:
        self._node = node
        self._weights = weights
        self._spec = spec = weights.spec
        before = [weights.operand(part) for part in weights.before]
        hidden, sizes = weights.hidden, spec.hidden_sizes
        self._first = _problem(node, spec, *before, inner=weights.inner, width=hidden, gated=spec.gated, widths=sizes)
        second = _problem(node, spec, weights.operand("down"), inner=hidden, width=weights.width, inners=sizes)
        self._second = self._skipping_zeros(second) if spec.activation in _ACTIVATIONS_WITH_ZEROS else second

    def _skipping_zeros(self, second: PackedProduct) -> PackedProduct:
        """The second product, which may skip hidden values of zero; it must not where a weight is infinite or NaN,
        because zero times such a weight is NaN."""
        skipping = dataclasses.replace(second, rows_have_zeros=True)
        return skipping if skipping.skips_zeros and self._weights.operand("down").has_finite_floats() else second

    def lower(self, weights: relax.Expr, ids: relax.Expr) -> Pairs:
        node, spec, weights_of = self._node, self._spec, self._weights
        x = node.tensor("x")
        steps = ExpertSteps(node)
        before, after = self._packed(self._first, weights_of.before), self._packed(self._second, ["down"])
        products = [(self._first, before), (self._second, after)]
        name = weights_of.operand("down").name
        ordered = steps.streamed(name, ids, steps.dispatch(ids, self._first.experts), products)
        x = rounded(node, spec, x, weights_of.inner)
        rows = steps.gather(x, weights, ordered, self._first, weighted=spec.weight_on_input)
        hidden = steps.multiply(
            self._first,
            rows,
            ordered,
            before,
            _add_bias(node, "up_bias", self._first, [weights_of.bias(part) for part in weights_of.before]),
            experts_epilogue(spec),
            {"activation": _activation_of(spec)},
            next_problem=self._second,
        )
        pairs = steps.multiply(
            self._second,
            self._hidden_rows(steps, hidden, ordered),
            ordered,
            after,
            _add_bias(node, "down_bias", self._second, [weights_of.bias("down")]),
            identity,
            {"activation": "none"},
        )
        return Pairs(ids, pairs)

    def _hidden_rows(self, steps: ExpertSteps, hidden: relax.Expr, ordered: Sorted) -> tuple[relax.Expr, ...]:
        if self._second.arithmetic != "int8":
            return (rounded(self._node, self._spec, hidden, self._weights.hidden),)
        return steps.quantize(hidden, self._second, ordered.pairs + SPARE_ROWS)

    def _packed(self, problem: PackedProduct, parts: Sequence[Part]) -> list[relax.Var]:
        """The parts that share tiles, named by the last operand that holds one."""
        weights = self._weights
        name = f"{weights.operand(parts[-1]).name}.tiles"
        return add_weights(
            self._node.lowering, name, problem, lambda expert: [weights.encoded(part, expert) for part in parts]
        )


def _problem(
    node: NodeLowering,
    spec: ProductSpec,
    *weights: StoredWeight,
    inner: int,
    width: int,
    gated: bool = False,
    inners: tuple[int, ...] = (),
    widths: tuple[int, ...] = (),
) -> PackedProduct:
    formats, format_of = formats_of(*weights)
    problem = PackedProduct(
        weights[0].experts,
        inner,
        width,
        gated,
        node.machine,
        formats,
        format_of,
        *arithmetic_of(spec),
        inners,
        widths,
    )
    check(problem)
    return problem


def _add_bias(node: NodeLowering, role: str, problem: PackedProduct, parts: Sequence[np.ndarray | None]) -> relax.Expr:
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
