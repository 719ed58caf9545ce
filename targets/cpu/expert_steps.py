"""The steps that the MoE operators share on a CPU: rows sorted by expert, and their products with weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
from tvm import relax

from moec.common.errors import UnsupportedError
from moec.common.work import GroupedWork
from moec.ir.exchanged_rows import chosen_experts
from moec.ir.streaming import shares_of
from moec.placing.metadata import layer_of
from moec.runtime.expert_calls import EXPERTS_THERE
from moec.targets.cpu.kernels import dispatch, gather, grouped_gemm
from moec.targets.cpu.kernels.gather import GATHER, GATHER_QUANTIZED, GatheredRows
from moec.targets.cpu.kernels.grouped_gemm import GROUPED_GEMM, GROUPED_GEMM_GATED, PackedProduct
from moec.targets.cpu.kernels.quantize_rows import QUANTIZE, QuantizedRows
from moec.targets.cpu.packed_weights import crossover_of, expert_starts
from moec.targets.tvm.kernels.kernel import KernelCall, select
from moec.targets.tvm.lowering.context import LoweringContext
from moec.targets.tvm.lowering.node_lowering import NodeLowering
from moec.targets.tvm.lowering.nodes import record_of

PRODUCTS = (GROUPED_GEMM_GATED, GROUPED_GEMM)


@dataclasses.dataclass(frozen=True)
class Sorted:
    """The results of dispatch."""

    order: relax.Expr
    offsets: relax.Expr
    blocks: relax.Expr
    block_count: relax.Expr

    @property
    def pairs(self) -> Any:
        return self.order.ty.shape[0]


Rows = tuple[relax.Expr, ...]
"""The left factor of a product: the rows; with int8 arithmetic also their scales and sums."""


def check(problem: PackedProduct) -> None:
    """Raises UnsupportedError for formats that no product takes together."""
    if problem.arithmetic == "float32":
        return
    bfloat16 = problem.arithmetic == "bfloat16"
    wrong = sorted(
        {
            stored.name
            for stored in problem.formats
            if (stored.element != "bfloat16" if bfloat16 else not stored.fits_bytes)
        }
    )
    if wrong:
        raise UnsupportedError(f"{problem.arithmetic} arithmetic with {', '.join(wrong)} weights has no CPU kernel")
    groups = sorted({product.dot_group for product in problem.multiplications})
    mixed = [stored.name for stored in problem.formats if stored.group and problem.activation_group % stored.group]
    if len(groups) > 1 or mixed:
        actual = f"groups of {', '.join(map(str, groups))} and activation groups of {problem.activation_group}"
        raise UnsupportedError(f"{actual} have no CPU kernel; expected one size of groups, or none, in a node")


def quantized_rows(
    lowering: LoweringContext, node: ir.Node, problem: PackedProduct, x: relax.Expr, rows: Any
) -> list[relax.Var]:
    """``x`` [M, at least inner] as int8 rows with scales and sums; ``rows`` of memory, at least M."""
    product = problem.multiplications[0]
    dtype, input_width = str(x.ty.dtype), int(x.ty.shape[1])
    quantized = QuantizedRows(
        problem.inner, input_width, problem.padded_inner, problem.activation_group, product.dot_group, dtype
    )
    outputs = [
        relax.TensorType((rows, quantized.row_bytes), "int8"),
        relax.TensorType((rows, quantized.scales), "float32"),
        relax.TensorType((rows, quantized.sums), "int32"),
    ]
    attributes = {"width": problem.inner, "group": problem.activation_group}
    function, chosen = QUANTIZE.build(quantized, problem.machine), select((QUANTIZE,), quantized, problem.machine)
    record = record_of(node, KernelCall(chosen, function, [x], attributes))
    return lowering.call_kernel(function, [x], outputs, record)


class ExpertSteps:
    """The steps for one node."""

    def __init__(self, node: NodeLowering) -> None:
        self._node = node

    def dispatch(self, ids: relax.Expr, experts: int) -> Sorted:
        tokens, slots = ids.ty.shape
        pairs = tokens * slots
        outputs = [
            relax.TensorType((pairs,), "int32"),
            relax.TensorType((experts + 1,), "int32"),
            relax.TensorType((dispatch.most_blocks(experts, pairs), 3), "int32"),
            relax.TensorType((1,), "int32"),
        ]
        attributes = {"experts": experts, "block_rows": dispatch.BLOCK_ROWS}
        chosen = self._node.select((dispatch.DISPATCH,), experts)
        called = KernelCall(chosen, chosen.kernel.build(experts), [ids], attributes)
        return Sorted(*self._node.call(called, outputs))

    def dispatch_rows(self, ids: relax.Expr, experts: int) -> Sequence[relax.Expr]:
        """Offsets, positions, tokens and owners of the rows that ``moec.Dispatch`` makes from ids [T, k]."""
        tokens, slots = ids.ty.shape
        shapes = [(experts + 1,), (tokens, slots), (tokens * slots,), (tokens * slots,)]
        outputs = [relax.TensorType(shape, "int32") for shape in shapes]
        chosen = self._node.select((dispatch.DISPATCH_ROWS,), experts)
        called = KernelCall(chosen, chosen.kernel.build(experts), [ids], {"experts": experts})
        return self._node.call(called, outputs)

    def streamed(
        self, name: str, ids: relax.Expr, ordered: Sorted, products: Sequence[tuple[PackedProduct, list[relax.Var]]]
    ) -> Sorted:
        """``ordered``, with a block count that is ready only when the experts of all blocks are in memory.

        Unchanged where experts are not streamed."""
        lowering = self._node.lowering
        if not lowering.streams:
            return ordered
        starts = {variable: places for product in products for variable, places in expert_starts(*product).items()}
        chosen = min(max(int(ids.ty.shape[1]), chosen_experts(self._node.node) or 1), products[0][0].experts)
        shares = shares_of(self._node.node, products[0][0].experts)
        layer = lowering.stream_experts(name, chosen, starts, shares, layer_of(self._node.node))
        arguments = [layer, ordered.blocks, ordered.block_count]
        count = lowering.call_runtime(EXPERTS_THERE, arguments, relax.TensorType((1,), "int32"), "experts_there")
        return dataclasses.replace(ordered, block_count=count)

    def gather(
        self, x: relax.Expr, weights: relax.Expr, ordered: Sorted, problem: PackedProduct, weighted: bool
    ) -> Rows:
        """The tokens of all pairs, sorted by expert, in the form that the product takes; times the routing weights if
        ``weighted``."""
        if problem.arithmetic == "int8":
            return self._gather_quantized(x, weights, ordered, problem, weighted)
        dtype, out_dtype = str(x.ty.dtype), problem.arithmetic
        options = {"weighted": weighted, "weight_dtype": str(weights.ty.dtype), "out_dtype": out_dtype}
        function = GATHER.build(problem.inner, dtype, filled=problem.padded_inner, **options)
        width = gather.row_width(problem.padded_inner, 2 if out_dtype == "bfloat16" else 4)
        output = relax.TensorType((ordered.pairs + gather.SPARE_ROWS, width), out_dtype)
        chosen = self._node.select((GATHER,), GatheredRows(problem.inner, dtype))
        arguments = [x, weights, ordered.order, ordered.offsets]
        attributes = {"weighted": weighted, "rows": out_dtype}
        return tuple(self._node.call(KernelCall(chosen, function, arguments, attributes), [output]))

    def _gather_quantized(
        self, x: relax.Expr, weights: relax.Expr, ordered: Sorted, problem: PackedProduct, weighted: bool
    ) -> Rows:
        tokens = self.quantize(x, problem, x.ty.shape[0])
        pairs = ordered.pairs + gather.SPARE_ROWS
        outputs = [relax.TensorType((pairs, tensor.ty.shape[1]), str(tensor.ty.dtype)) for tensor in tokens]
        row_bytes = int(tokens[0].ty.shape[1])
        function = GATHER_QUANTIZED.build(row_bytes, weighted=weighted, weight_dtype=str(weights.ty.dtype))
        chosen = self._node.select((GATHER_QUANTIZED,), GatheredRows(problem.inner, "int8"))
        arguments = [*tokens, weights, ordered.order, ordered.offsets]
        attributes = {"weighted": weighted, "rows": "int8"}
        return tuple(self._node.call(KernelCall(chosen, function, arguments, attributes), outputs))

    def quantize(self, x: relax.Expr, problem: PackedProduct, rows: Any) -> Rows:
        return tuple(quantized_rows(self._node.lowering, self._node.node, problem, x, rows))

    def multiply(
        self,
        problem: PackedProduct,
        rows: Rows,
        ordered: Sorted,
        weights: list[relax.Var],
        bias: relax.Expr,
        epilogue: Callable[..., Any],
        attributes: dict[str, Any],
        *,
        next_problem: PackedProduct | None = None,
    ) -> relax.Expr:
        """The product of the rows. With ``next_problem``, results stay sorted by expert, as the left operand of that
        product; else they return to the order of the pairs, in float32."""
        scattered = next_problem is None
        filled, out_dtype, spare = 0, "float32", 0
        if next_problem is not None and next_problem.arithmetic != "int8":
            filled, out_dtype, spare = next_problem.padded_inner, next_problem.arithmetic, gather.SPARE_ROWS
        chosen = self._node.select(PRODUCTS, problem)
        function = chosen.kernel.build(
            problem,
            epilogue,
            input_width=int(rows[0].ty.shape[1]),
            scattered=scattered,
            filled=filled,
            out_dtype=out_dtype,
        )
        width = grouped_gemm.out_width(problem, filled, out_dtype)
        output = relax.TensorType((ordered.pairs + spare, width), out_dtype)
        called = KernelCall(
            chosen,
            function,
            [*rows, ordered.order, ordered.blocks, ordered.block_count, *weights, bias],
            {**product_attributes(problem), **attributes, "scattered": scattered},
            crossovers_of(problem),
            requires=tuple(
                dict.fromkeys(
                    feature for multiplication in problem.multiplications for feature in multiplication.requirements
                )
            ),
            work=_work_of(problem),
        )
        return self._node.call(called, [output])[0]


def _work_of(problem: PackedProduct) -> GroupedWork:
    return GroupedWork(
        problem.inner,
        problem.width,
        2 if problem.gated else 1,
        problem.arithmetic,
        tuple(_weight_bits(problem)),
        problem.format_of,
        problem.widths or problem.inners,
        "width" if problem.widths else "inner",
    )


def _weight_bits(problem: PackedProduct) -> list[float]:
    return [round(stored.bits_per_weight(problem.inner), 3) for stored in problem.formats]


def crossovers_of(problem: PackedProduct) -> tuple[str, ...]:
    """Name of the crossover that a product reads, if it reads one."""
    crossover = crossover_of(problem)
    return () if crossover is None else (crossover.name,)


def product_attributes(problem: PackedProduct) -> dict[str, Any]:
    """Attributes of a grouped product for the artifact."""
    return {
        "experts": problem.experts,
        "inner": problem.inner,
        "width": problem.width,
        "gated": problem.gated,
        "formats": [stored.name for stored in problem.formats],
        "format_of": list(problem.format_of),
        "hidden_sizes": list(problem.widths or problem.inners),
        "weight_bits": _weight_bits(problem),
        "arithmetic": problem.arithmetic,
        "activation_group": problem.activation_group,
        "skips_zeros": problem.skips_zeros,
        "column_tile": problem.columns,
        "row_tiles": f"1 to {problem.machine.row_tile}, chosen at run time by the rows of each expert",
    }
