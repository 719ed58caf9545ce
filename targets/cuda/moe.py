"""The moec operators on a GPU: their kernels, with weights and intermediate results.

======================  ==============================================================================================
``moec.Route``          route (, capacity); three kernels where experts choose tokens (``lowering.routing``)
``moec.Experts``        dispatch, grouped product of gathered rows with the activation, grouped product back to the
                        order of the pairs, combine
``moec.Dispatch``       dispatch into blocks of one row, describe_rows
``moec.GroupedMatMul``  dispatch, grouped product of rows that have one expert each, trim
``moec.Combine``        combine_placed
``moec.MoE``            those of Route, then those of Experts: five launches; for few tokens three, whose last product
                        also combines
``moec.Linear``         one product, in one of several ways by the number of rows (:mod:`.dense_products`)
======================  ==============================================================================================

Each product is computed in one of several ways, by the number of tokens (:mod:`.grouped_products`). The host never
waits for the device: grids are sized by the upper bound of the work that routing can create. Quantised matrices stay as
they are stored. Experts with different formats are computed by separate launches
(:mod:`~moec.targets.gpu.lowering.expert_groups`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax

from moec.common.errors import UnsupportedError
from moec.ir.dialect import ExpertsSpec, ProductSpec
from moec.ir.expert_weights import ExpertWeights
from moec.ir.semantics import activated
from moec.ir.weights.stored import StoredWeight
from moec.targets.cuda.block_dispatch import dispatch_rows
from moec.targets.cuda.dense_products import no_bias
from moec.targets.cuda.grouped_products import ExpertsProduct, GroupedProducts, work_of_pairs
from moec.targets.cuda.linear import lower_linear
from moec.targets.cuda.product_rows import (
    computed_in,
    is_rounded,
    padded_inputs,
    prepared,
    rounding_of,
    uses_tf32,
    with_rows_of,
)
from moec.targets.cuda.shared_scales import with_shared_scales
from moec.targets.gpu.kernels.activation import experts_epilogue
from moec.targets.gpu.kernels.combine import COMBINE, COMBINE_PLACED, TRIM
from moec.targets.gpu.kernels.combining_gemv import COMBINING_GEMV, CombiningProblem
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem, interleave
from moec.targets.gpu.kernels.pad_rows import whole_vectors
from moec.targets.gpu.lowering.expert_groups import ExpertGroup, fields_of, groups_by_format, of_group, renumbered
from moec.targets.gpu.lowering.expert_matrices import (
    Parts,
    add_matrix,
    as_stored,
    filled,
    padded_name,
    parts_of,
    whole_parts,
)
from moec.targets.gpu.lowering.routing import lower_routing
from moec.targets.tvm.heavy.experts import CombineProblem, Pairs, Routing
from moec.targets.tvm.kernels.activation import identity
from moec.targets.tvm.kernels.kernel import Kernel, KernelCall
from moec.targets.tvm.lowering.node_lowering import NodeLowering
from moec.targets.tvm.sizes.shapes import static_size


class CudaExpertOps:
    """The GPU's implementation of the operations that :mod:`moec.targets.tvm.heavy.experts` needs."""

    combine: Kernel = COMBINE
    combine_placed: Kernel = COMBINE_PLACED
    trim: Kernel = TRIM

    def dispatch(self, node: NodeLowering, ids: relax.Expr, experts: int) -> Sequence[relax.Expr]:
        return dispatch_rows(node, ids, experts)

    def route(self, node: NodeLowering) -> Routing:
        return lower_routing(node)

    def linear(self, node: NodeLowering) -> relax.Expr:
        return lower_linear(node)

    def experts(self, node: NodeLowering, weights: ExpertWeights, routing: Routing, capacity: int) -> Pairs:
        return _CudaExperts(node, weights).lower(*routing, capacity)

    def grouped_matmul(self, node: NodeLowering, spec: ProductSpec, weight: StoredWeight, routing: Routing) -> Pairs:
        return _multiply(node, spec, weight, *routing)


class _CudaExperts:
    """The experts of a node: two products with an activation between them."""

    def __init__(self, node: NodeLowering, weights: ExpertWeights) -> None:
        self._node, self._weights, self._spec = node, weights, weights.spec
        _refuse_rounding_of_absent_units(self._spec)
        self._x = computed_in(node, self._spec)
        self._dtype = str(self._x.ty.dtype)
        before = [self._weights.operand(part) for part in self._weights.before]
        self._groups = groups_by_format([before, [self._weights.operand("down")]], self._dtype)

    def lower(self, weights: relax.Expr, ids: relax.Expr, capacity: int) -> Pairs:
        """Emit both products and return the results of all pairs. ``weights`` and ``ids``: routing weights and experts
        [T, k]; ``capacity``: the most pairs of an expert, 0 for no limit."""
        node, spec = self._node, self._spec
        ids = renumbered(node, self._groups, ids)
        routing_dtype = str(weights.ty.dtype)
        firsts, seconds = self._padded(
            *zip(*(self._problems(group, routing_dtype) for group in self._groups), strict=True)
        )
        problems = list(zip(*(with_rows_of(spec, side, node.machine) for side in (firsts, seconds)), strict=True))
        all_problems = [problem for pair in problems for problem in pair]
        products = GroupedProducts(node, self._weights.experts, all_problems, ids, weights, capacity)
        firsts, seconds = self._products(problems)
        epilogue = experts_epilogue(spec, self._dtype)
        x = prepared(node, spec, firsts[0].problem, self._x, self._weights.inner)
        hidden = products.multiply(firsts, x, products.places, epilogue, spec.activation)
        if is_rounded(spec):
            hidden = products.rounded(hidden, rounding_of(spec, seconds[0].problem, self._dtype, node.machine))
        combining = _Combining.of(node, products, seconds, hidden, weights, ids, spec)
        rows = products.multiply(seconds, hidden, products.pairs, identity, few=combining is None)
        return Pairs(ids, rows, None if combining is None else combining.lower)

    def _problems(self, group: ExpertGroup, routing_dtype: str) -> tuple[GroupedProblem, GroupedProblem]:
        """The products before and after the activation for a group of experts."""
        spec, dtype, weights = self._spec, self._dtype, self._weights
        common: dict[str, Any] = {"dtype": dtype, "routing_dtype": routing_dtype, **fields_of(group, self._groups)}
        common["tf32"] = uses_tf32(spec, dtype)
        up, down = group.formats
        before: dict[str, Any] = {"matrix_dtype": up.dtype, "stored": up.stored, "out_dtype": dtype, **common}
        after: dict[str, Any] = {"matrix_dtype": down.dtype, "stored": down.stored, **common}
        after["out_dtype"] = _pair_dtype(self._node)
        first = GroupedProblem(inner=weights.inner, width=weights.hidden, gated=spec.gated, gathered=True, **before)
        first = dataclasses.replace(first, weighted=spec.weight_on_input)
        return first, GroupedProblem(inner=weights.hidden, width=weights.width, scattered=True, **after)

    def _padded(
        self, firsts: Sequence[GroupedProblem], seconds: Sequence[GroupedProblem]
    ) -> tuple[list[GroupedProblem], list[GroupedProblem]]:
        """The problems padded to sizes that tensor cores take. Hidden units are padded, too, except if the padding
        would change how rows are rounded: if rows are rounded and the activation of zero is not zero."""
        hidden, machine = self._weights.hidden, self._node.machine
        if not is_rounded(self._spec) or _makes_zero_of_zeros(self._spec):
            hidden = padded_inputs(seconds, machine, self._spec.arithmetic)
        firsts = [dataclasses.replace(problem, width=hidden) for problem in firsts]
        inner = padded_inputs(firsts, machine, self._spec.arithmetic)
        firsts = [dataclasses.replace(problem, inner=inner) for problem in firsts]
        return firsts, [_with_whole_rows(dataclasses.replace(problem, inner=hidden)) for problem in seconds]

    def _products(
        self, problems: Sequence[tuple[GroupedProblem, GroupedProblem]]
    ) -> tuple[list[ExpertsProduct], list[ExpertsProduct]]:
        """The products of all groups before and after the activation."""
        weights = self._weights
        up_bias, down_bias = self._up_bias(), weights.bias("down")
        up_name = ".".join(dict.fromkeys(weights.operand(part).name for part in weights.before))
        down_name = weights.operand("down").name
        before, after = [], []
        for group, (first, second) in zip(self._groups, problems, strict=True):
            up, inner, hidden = parts_of(weights, weights.before, first.stored), weights.inner, weights.hidden
            name = padded_name(up_name, (inner, first.inner), (hidden, first.width))
            before.append(self._product(group, first, name, up, "up_bias", up_bias))
            down = parts_of(weights, ["down"], second.stored)
            name = padded_name(down_name, (hidden, second.inner), (weights.width, second.width))
            after.append(self._product(group, second, name, down, "down_bias", down_bias))
        return before, after

    def _product(
        self, group: ExpertGroup, problem: GroupedProblem, name: str, parts: Parts, role: str, bias: np.ndarray | None
    ) -> ExpertsProduct:
        node, suffix = self._node, "" if len(self._groups) == 1 else f".{self._node.name}.{group.first}"
        own_parts = of_group(parts, group)
        problem = with_shared_scales(dataclasses.replace(problem, biased=bias is not None), own_parts)
        matrix = add_matrix(node, f"{name}.rows{suffix}", problem, own_parts)
        own = None if bias is None else bias[list(group.experts)]
        return ExpertsProduct(problem, [*matrix, _bias(node, f"{role}{suffix}", problem, own)])

    def _up_bias(self) -> np.ndarray | None:
        """The bias before the activation, [E, columns], with zeros for hidden units that an expert does not have; None
        if there is none."""
        spec, biases = self._spec, [self._weights.bias(part) for part in self._weights.before]
        existing = next((bias for bias in biases if bias is not None), None)
        if existing is None:
            return None
        both = [np.zeros_like(existing) if bias is None else np.array(bias) for bias in biases]
        for expert, size in enumerate(spec.hidden_sizes):
            for bias in both:
                bias[expert, size:] = 0
        return interleave(*(bias[..., None] for bias in both))[..., 0] if spec.gated else both[0]


@dataclasses.dataclass(frozen=True)
class _Combining:
    """The second product and the sum over a token's experts in one launch, for few tokens."""

    node: NodeLowering
    products: GroupedProducts
    second: ExpertsProduct
    hidden: relax.Expr
    weights: relax.Expr
    ids: relax.Expr
    slots: int

    @staticmethod
    def of(
        node: NodeLowering,
        products: GroupedProducts,
        seconds: Sequence[ExpertsProduct],
        hidden: relax.Expr,
        weights: relax.Expr,
        ids: relax.Expr,
        spec: ExpertsSpec,
    ) -> _Combining | None:
        """The combination, or None if no tokens go pair by pair, the number of experts per token is dynamic, experts
        are in several groups, or some return their input."""
        slots = static_size(ids.ty.shape[1])
        if products.few is None or slots is None or len(seconds) > 1 or spec.identity_experts:
            return None
        return _Combining(node, products, seconds[0], hidden, weights, ids, slots)

    def lower(self, problem: CombineProblem, call: KernelCall, output: relax.TensorType) -> relax.Expr:
        node, many, few = self.node, self.products.many, self.products.few
        assert few is not None
        function, arguments = many.limited(call.function, 0), [*many.numbers(node.lowering), *call.arguments]
        attributes = {**call.attributes, "tokens": str(many)}
        results = node.call(KernelCall(call.chosen, function, arguments, attributes, many.names), [output])
        combining = CombiningProblem(self.second.problem, problem, self.slots)
        operands = [self.hidden, *self.second.operands]
        function = few.limited(COMBINING_GEMV.build(combining), len(operands))
        arguments = [*few.numbers(node.lowering), *operands, self.weights, self.ids]
        attributes = {**self.second.problem.facts(), **call.attributes, "tokens": str(few)}
        chosen = node.select((COMBINING_GEMV,), combining)
        work = work_of_pairs(combining.product, combining.product.experts)
        call = KernelCall(chosen, function, arguments, attributes, few.names, sized_work=work)
        return node.call_on(call, results)[0]


def _multiply(
    node: NodeLowering, spec: ProductSpec, weight: StoredWeight, no_weights: relax.Expr, ids: relax.Expr
) -> Pairs:
    """Emit the product of a ``moec.GroupedMatMul`` node, with its bias, and return the results of all pairs."""
    x = computed_in(node, spec)
    inner, width = weight.shape
    groups = groups_by_format([[weight]], str(x.ty.dtype))
    ids = renumbered(node, groups, ids)
    bias, products = node.bias("bias"), []
    problems = [_problem_of(node, spec, group, groups, inner, width, str(x.ty.dtype)) for group in groups]
    padded = padded_inputs(problems, node.machine, spec.arithmetic)
    problems = [_with_whole_rows(dataclasses.replace(problem, inner=padded)) for problem in problems]
    for group, problem in zip(groups, with_rows_of(spec, problems, node.machine), strict=True):
        name = padded_name(f"{weight.name}.columns", (inner, problem.inner), (width, problem.width))
        name += "" if len(groups) == 1 else f".{node.name}.{group.first}"
        parts = of_group(whole_parts(weight, problem.stored), group)
        problem = with_shared_scales(dataclasses.replace(problem, biased=bias is not None), parts)
        matrix = add_matrix(node, name, problem, parts)
        own = None if bias is None else bias[list(group.experts)]
        products.append(ExpertsProduct(problem, [*matrix, _bias(node, f"bias.{group.first}", problem, own)]))
    grouped = GroupedProducts(node, weight.experts, [product.problem for product in products], ids, no_weights)
    x = prepared(node, spec, products[0].problem, x, inner)
    return Pairs(ids, grouped.multiply(products, x, grouped.pairs, identity))


def _problem_of(
    node: NodeLowering,
    spec: ProductSpec,
    group: ExpertGroup,
    groups: Sequence[ExpertGroup],
    inner: int,
    width: int,
    dtype: str,
) -> GroupedProblem:
    """The problem of a group of experts for rows of ``dtype``."""
    (form,) = group.formats
    fields: dict[str, Any] = {
        "dtype": dtype,
        "matrix_dtype": form.dtype,
        "stored": form.stored,
        "tf32": uses_tf32(spec, dtype),
    }
    fields |= fields_of(group, groups) | {"out_dtype": _pair_dtype(node)}
    return GroupedProblem(inner=inner, width=width, gathered=True, scattered=True, **fields)


def _pair_dtype(node: NodeLowering) -> str:
    """The type in which results of pairs are stored: that of the tokens if it has 16 bits, otherwise float32.

    The graph's own products are rounded to that type, too. ``combine`` is limited by reading these results, so 16 bits
    halve its time.
    """
    dtype = str(node.tensor("x").ty.dtype)
    return dtype if dtype in ("float16", "bfloat16") else "float32"


def _makes_zero_of_zeros(spec: ExpertsSpec) -> bool:
    """Whether a hidden unit whose weights are zeros is zero."""
    nothing = np.zeros((1, 1), np.float32)
    return bool(activated(spec, nothing if spec.gated else None, nothing) == 0)


def _with_whole_rows(problem: GroupedProblem) -> GroupedProblem:
    """The product with trailing columns of zeros, such that results of pairs can be read 16 bytes at a time."""
    return dataclasses.replace(problem, width=whole_vectors(problem.width, problem.out_dtype))


def _refuse_rounding_of_absent_units(spec: ExpertsSpec) -> None:
    """Raise UnsupportedError if hidden units that an expert does not have would change how its rows are rounded: if the
    activation of zero is not zero."""
    if is_rounded(spec) and spec.hidden_sizes and not _makes_zero_of_zeros(spec):
        raise UnsupportedError(
            f"{spec.activation} makes no zero of zero, hidden_sizes differ and arithmetic is {spec.arithmetic}; "
            "expected another activation or arithmetic float32"
        )


def _bias(node: NodeLowering, role: str, problem: GroupedProblem, bias: np.ndarray | None) -> relax.Expr:
    """The biases as an operand of the problem: float32, with zeros for columns of padding. Raises UnsupportedError for
    a shape that does not fit."""
    shape = problem.bias_shape
    if bias is None:
        return no_bias(node.lowering)
    if bias.ndim != 2 or bias.shape[0] != shape[0] or bias.shape[1] > shape[1]:
        raise UnsupportedError(
            f"{role} has {list(bias.shape)} elements in the order of the kernel; expected {list(shape)}"
        )

    def load() -> np.ndarray:
        return filled(as_stored(bias, "float32"), *shape)

    return node.lowering.add_weight(f"{node.name}.{role}", shape, "float32", load)
