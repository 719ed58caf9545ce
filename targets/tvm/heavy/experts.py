"""Converters of the moec dialect for any target, with the steps before and after the products of the experts.

A target provides its kernels and the products (:class:`ExpertOps`). ``GroupedMatMul`` is treated as a layer with one
slot: its rows are the tokens, and each has one expert or none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import onnx_ir as ir
from tvm import relax, te

from moec.common.errors import UnsupportedError
from moec.ir.dialect import DispatchSpec, ProductSpec, RouteSpec, spec_of
from moec.ir.expert_weights import ExpertWeights
from moec.ir.weights.stored import StoredWeight
from moec.runtime.expert_calls import EXPERTS_ABSENT, EXPERTS_EXPECTED
from moec.targets.tvm.heavy import ranks
from moec.targets.tvm.kernels.kernel import Kernel, KernelCall
from moec.targets.tvm.lowering.context import HeavyConverter, LoweringContext
from moec.targets.tvm.lowering.node_lowering import NodeLowering
from moec.targets.tvm.sizes.shapes import static_size

Routing = tuple[relax.Expr, relax.Expr]
"""Weights [T, k] and expert ids [T, k] (int32)."""


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Results of the experts for the pairs t * k + slot of a token and its expert.

    ``ids`` [T, k] (int32): the experts of the pairs, as kernels number them. ``rows`` [P, at least width]: the results
    in the order of the pairs. ``combined``: the target's own way to sum them, from the problem, the call of ``combine``
    and the type of its result; None where that call suffices."""

    ids: relax.Expr
    rows: relax.Expr
    combined: Callable[[CombineProblem, KernelCall, relax.TensorType], relax.Expr] | None = None


@dataclasses.dataclass(frozen=True)
class CombineProblem:
    """Combination of the rows of pairs to rows of tokens: weighted and summed, or only cut to ``width`` columns.

    Ids in [0, ``experts``) have a row of ``width`` columns (``pair_width`` in memory); the next ``identity_experts``
    ids stand for the token itself. Rows are clamped to [-limit, limit] where ``limit`` > 0.
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


@dataclasses.dataclass(frozen=True)
class PlacedRows:
    """Rows of ``width`` columns, found by an array of positions."""

    width: int
    dtype: str
    weight_dtype: str


class ExpertOps(Protocol):
    """A target's kernels and products for experts.

    The functions that kernels build take: ``combine``, of a :class:`CombineProblem`: x, weights, ids, rows and y;
    ``trim``, of the same: ids[R, 1], rows and y[R, width]; ``combine_placed``, of :class:`PlacedRows`: rows, weights,
    positions and y."""

    combine: Kernel
    combine_placed: Kernel
    trim: Kernel

    def dispatch(self, node: NodeLowering, ids: relax.Expr, experts: int) -> Sequence[relax.Expr]:
        """Lower ``moec.Dispatch``; ids outside [0, ``experts``) are not dispatched."""
        ...

    def route(self, node: NodeLowering) -> Routing:
        """Lower the routing of ``moec.Route`` and ``moec.MoE``."""
        ...

    def linear(self, node: NodeLowering) -> relax.Expr:
        """Lower ``moec.Linear``."""
        ...

    def experts(self, node: NodeLowering, weights: ExpertWeights, routing: Routing, capacity: int) -> Pairs:
        """Both products with the activation between them. An expert has at most ``capacity`` pairs; 0: any number."""
        ...

    def grouped_matmul(self, node: NodeLowering, spec: ProductSpec, weight: StoredWeight, routing: Routing) -> Pairs:
        """The rows x [R, K] times the matrices of their experts, with a bias. The routing is [R, 1]; its weights are
        zeros that no kernel reads."""
        ...


def converters(ops: ExpertOps, machine: Any) -> Mapping[str, HeavyConverter]:
    """Converters of the moec domain for a machine, by the name of the operator."""

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
        "moec.Dispatch": converter(lambda node: _lower_dispatch(ops, node)),
        "moec.GroupedMatMul": converter(lambda node: _lower_grouped_matmul(ops, node)),
        "moec.Combine": converter(lambda node: _lower_combine(ops, node)),
        "moec.Linear": converter(ops.linear),
        "moec.MoE": converter(lower_moe),
        "moec.Expect": converter(_lower_expect),
        "moec.Absent": converter(_lower_absent),
        **ranks.converters(machine),
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
    call = KernelCall(chosen, function, [x, weights, pairs.ids, pairs.rows], attributes)
    return node.call(call, [output])[0] if pairs.combined is None else pairs.combined(problem, call, output)


def _lower_dispatch(ops: ExpertOps, node: NodeLowering) -> Sequence[relax.Expr]:
    ids = node.cast(node.lowering.tensor(node.input("experts")), "int32")
    return ops.dispatch(node, ids, spec_of(node.node, DispatchSpec).expert_count)


def _lower_grouped_matmul(ops: ExpertOps, node: NodeLowering) -> relax.Expr:
    lowering, weight, x = node.lowering, node.needed_weight("weights"), node.tensor("x")
    offsets = lowering.tensor_of_shape(node.input("offsets"), [weight.experts + 1])
    rows = x.ty.shape[0]
    (ids,) = lowering.compute(
        lambda offsets: _experts_of_rows(offsets, rows, weight.experts),
        [node.cast(offsets, "int32")],
        "experts_of_rows",
    )
    no_weights = lowering.emit(relax.op.zeros(ids.ty.shape, "float32"))
    pairs = ops.grouped_matmul(node, spec_of(node.node, ProductSpec), weight, (no_weights, ids))
    _, width = weight.shape
    problem = _combine_problem(pairs, weight.experts, width, str(x.ty.dtype))
    output = relax.TensorType((rows, width), problem.dtype)
    chosen, function = node.select((ops.trim,), problem), ops.trim.build(problem)
    return node.call(KernelCall(chosen, function, [pairs.ids, pairs.rows]), [output])[0]


def _experts_of_rows(offsets: te.Tensor, rows: Any, experts: int) -> te.Tensor:
    """The expert [R, 1] of each row, ``experts`` for a row without one; within [0, ``experts``] for any offsets."""
    expert = te.reduce_axis((0, experts), name="expert")

    def begun(row: Any, _: Any) -> Any:
        """Number of experts whose rows end at or before ``row``: the row's expert, as offsets ascend."""
        return te.sum((offsets[expert + 1].astype("int64") <= row).astype("int32"), axis=expert)

    return te.compute((rows, 1), begun, name="experts_of_rows")


def _lower_combine(ops: ExpertOps, node: NodeLowering) -> relax.Expr:
    lowering = node.lowering
    rows, weights = (lowering.tensor(node.input(name)) for name in ("rows", "weights"))
    positions = node.cast(lowering.tensor_of_shape(node.input("positions"), weights.ty.shape), "int32")
    width = static_size(rows.ty.shape[1])
    if width is None:
        raise UnsupportedError("rows have a dynamic number of columns; expected a number that is known now")
    problem = PlacedRows(width, str(rows.ty.dtype), str(weights.ty.dtype))
    output = relax.TensorType((weights.ty.shape[0], width), problem.dtype)
    chosen, function = node.select((ops.combine_placed,), problem), ops.combine_placed.build(problem)
    return node.call(KernelCall(chosen, function, [rows, weights, positions]), [output])[0]


def _lower_expect(node: NodeLowering) -> relax.Expr:
    lowering, x = node.lowering, node.tensor("x")
    if not lowering.streams:
        return x
    layer = lowering.streamed_layer(node.needed_weight("weights").name)
    arguments = [layer, x, node.cast(lowering.tensor(node.input("experts")), "int32")]
    return lowering.call_runtime(EXPERTS_EXPECTED, arguments, x.ty, "experts_expected")


def _lower_absent(node: NodeLowering) -> relax.Expr:
    lowering, logits = node.lowering, node.tensor("logits")
    weight = node.needed_weight("weights")
    output = relax.TensorType((weight.experts,), "float32")
    if not lowering.streams:
        return relax.op.zeros(output.shape, "float32")
    return lowering.call_runtime(EXPERTS_ABSENT, [lowering.replace_experts(weight.name), logits], output, "absent")


def _combine_problem(pairs: Pairs, experts: int, width: int, dtype: str, **options: Any) -> CombineProblem:
    rows = pairs.rows
    return CombineProblem(
        experts, width, dtype, pair_dtype=str(rows.ty.dtype), pair_width=int(rows.ty.shape[1]), **options
    )
