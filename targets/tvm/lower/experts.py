"""The operators of the moec dialect on any target: which converters there are, and what is common before and behind the
products of the experts. A target gives its kernels and the products (:class:`ExpertOps`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import onnx_ir as ir
from tvm import relax

from moec.ir.dialect import ProductSpec, RouteSpec, spec_of
from moec.ir.weights.experts import ExpertWeights
from moec.ir.weights.stored import StoredWeight
from moec.targets.tvm.heavy import HeavyConverter, LoweringContext
from moec.targets.tvm.kernel import Kernel, KernelCall
from moec.targets.tvm.node_lowering import NodeLowering

Routing = tuple[relax.Expr, relax.Expr]
"""Weights [T, k] and expert ids [T, k] (int32)."""


@dataclasses.dataclass(frozen=True)
class Pairs:
    """What experts made of the pairs t * k + slot. ``ids`` [T, k] (int32): their experts as kernels number them;
    ``rows`` [P, at least width], in the order of the pairs."""

    ids: relax.Expr
    rows: relax.Expr


@dataclasses.dataclass(frozen=True)
class CombineProblem:
    """The rows of pairs back to tokens, weighted and summed, or only brought back.

    Ids in [0, ``experts``) have a row of ``width`` columns (``pair_width`` in memory); ids behind them, as many as
    ``identity_experts``, stand for the token itself. Rows are clamped to [-limit, limit] where ``limit`` > 0.
    """

    experts: int
    width: int
    dtype: str
    weighted: bool = False
    identity_experts: int = 0
    limit: float = 0.0
    weight_dtype: str = "float32"
    pair_dtype: str = "float32"
    pair_width: int | None = None

    @property
    def columns(self) -> int:
        """Columns of a row in memory."""
        return self.width if self.pair_width is None else self.pair_width


class ExpertOps(Protocol):
    """What differs between targets. ``combine.build(problem)`` takes x, weights, ids, rows and y; ``separate.build`` of
    the same problem ids, rows and y[T, k, width]."""

    combine: Kernel
    separate: Kernel

    def route(self, node: NodeLowering) -> Routing:
        """Lowers the routing of ``moec.Route`` and ``moec.MoE``."""
        ...

    def linear(self, node: NodeLowering) -> relax.Expr:
        """Lowers ``moec.Linear``."""
        ...

    def experts(self, node: NodeLowering, weights: ExpertWeights, routing: Routing, capacity: int) -> Pairs:
        """Both products with the activation between them; an expert has at most ``capacity`` pairs, if it is not 0."""
        ...

    def grouped_matmul(self, node: NodeLowering, spec: ProductSpec, weight: StoredWeight, routing: Routing) -> Pairs:
        """One product with a bias; the weights of the routing are zeros, which are not read."""
        ...


def converters(ops: ExpertOps, machine: Any) -> Mapping[str, HeavyConverter]:
    """The converters of the moec domain for a machine."""

    def converter(lower: Callable[[NodeLowering], Any]) -> HeavyConverter:
        def convert(lowering: LoweringContext, node: ir.Node) -> Any:
            return lower(NodeLowering(lowering, node, machine))

        return convert

    def lower_moe(node: NodeLowering) -> relax.Expr:
        return _lower_experts(ops, node, ops.route(node), spec_of(node.node, RouteSpec).capacity)

    def lower_experts(node: NodeLowering) -> relax.Expr:
        weights, ids = (node.lowering.tensor(node.input(name)) for name in ("weights", "experts"))
        return _lower_experts(ops, node, (weights, node.cast(ids, "int32")), 0)

    return {
        "moec.Route": converter(ops.route),
        "moec.Experts": converter(lower_experts),
        "moec.GroupedMatMul": converter(lambda node: _lower_grouped_matmul(ops, node)),
        "moec.Linear": converter(ops.linear),
        "moec.MoE": converter(lower_moe),
    }


def _lower_experts(ops: ExpertOps, node: NodeLowering, routing: Routing, capacity: int) -> relax.Expr:
    experts, (weights, _) = ExpertWeights(node.node), routing
    spec, x = experts.spec, node.tensor("x")
    pairs = ops.experts(node, experts, routing, capacity)
    problem = _combine_problem(
        pairs,
        experts.experts,
        experts.width,
        str(x.ty.dtype),
        weighted=not spec.weight_on_input,
        identity_experts=spec.identity_experts,
        limit=spec.output_limit,
        weight_dtype=str(weights.ty.dtype),
    )
    output = relax.TensorType((pairs.ids.ty.shape[0], problem.width), problem.dtype)
    attributes = {"weighted": problem.weighted, "identity_experts": problem.identity_experts}
    chosen, function = node.select((ops.combine,), problem), ops.combine.build(problem)
    return node.call(KernelCall(chosen, function, [x, weights, pairs.ids, pairs.rows], attributes), [output])[0]


def _lower_grouped_matmul(ops: ExpertOps, node: NodeLowering) -> relax.Expr:
    spec, weight = spec_of(node.node, ProductSpec), node.needed_weight("weights")
    ids = node.cast(node.lowering.tensor(node.input("experts")), "int32")
    no_weights = node.lowering.emit(relax.op.zeros(ids.ty.shape, "float32"))
    pairs = ops.grouped_matmul(node, spec, weight, (no_weights, ids))
    _, width = weight.shape
    problem = _combine_problem(pairs, weight.experts, width, str(node.tensor("x").ty.dtype))
    output = relax.TensorType((*pairs.ids.ty.shape, width), problem.dtype)
    chosen, function = node.select((ops.separate,), problem), ops.separate.build(problem)
    return node.call(KernelCall(chosen, function, [pairs.ids, pairs.rows]), [output])[0]


def _combine_problem(pairs: Pairs, experts: int, width: int, dtype: str, **options: Any) -> CombineProblem:
    rows = pairs.rows
    return CombineProblem(
        experts, width, dtype, pair_dtype=str(rows.ty.dtype), pair_width=int(rows.ty.shape[1]), **options
    )
