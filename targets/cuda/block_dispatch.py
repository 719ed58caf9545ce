"""The dispatch of a node's pairs into blocks: in one launch up to some number of tokens, in three launches beyond."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tvm import relax, te, tirx

from moec.targets.base import SizeRange
from moec.targets.cuda.estimates.crossovers import one_launch_tokens
from moec.targets.gpu.kernels.describe_rows import DESCRIBE_ROWS, describe_rows
from moec.targets.gpu.kernels.dispatch import DISPATCH, most_blocks
from moec.targets.gpu.kernels.dispatch_many import COUNT_PAIRS, PLACE_CHUNKS, SCATTER_PAIRS, chunks_for
from moec.targets.gpu.lowering.ways import TokenRange, crossover_to, per_token
from moec.targets.tvm.kernels.kernel import Kernel, KernelCall
from moec.targets.tvm.lowering.node_lowering import NodeLowering
from moec.targets.tvm.sizes.shapes import static_size


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The results of dispatch into blocks of ``rows``. They are computed only for the numbers of ``tokens``."""

    rows: int
    tokens: TokenRange
    sorted_pairs: relax.Var
    experts: relax.Var
    count: relax.Var


class BlockDispatch:
    """The dispatch of one node: it sorts the pairs (token, slot) by their expert.

    ``ids`` [T, k]: the expert of each pair, of ``experts`` in all. ``pairs``: an int64 expression, an upper bound of
    the pairs that have an expert.
    """

    def __init__(self, node: NodeLowering, experts: int, ids: relax.Expr, pairs: Any) -> None:
        self._node, self._experts, self._ids, self._pairs = node, experts, ids, pairs

    def into_blocks(self, rows: int, estimate: SizeRange, tokens: TokenRange) -> Blocks:
        """Dispatch into blocks of ``rows``, computed only for the numbers of ``tokens``. ``estimate``: the same range
        with the estimated bounds."""
        blocks = most_blocks(self._experts, self._pairs, rows)
        outputs = [relax.TensorType((size,), "int32") for size in (blocks * rows, blocks, 1)]
        slots = static_size(self._ids.ty.shape[1])
        most = one_launch_tokens(slots)
        if estimate.most is not None and estimate.most <= most:
            return Blocks(rows, tokens, *self._node.call(self._in_one_launch(rows, tokens), outputs))
        if estimate.least > most:
            return Blocks(rows, tokens, *self._in_three_launches(rows, tokens, outputs))
        shape = f"{self._experts}.{per_token(slots)}"
        crossover = crossover_to("three_launches", shape, self._node.machine, most + 1)
        results = self._in_three_launches(rows, tokens.reaching(crossover), outputs)
        results = self._node.call_on(self._in_one_launch(rows, tokens.missing(crossover)), results)
        return Blocks(rows, tokens, *results)

    def _in_one_launch(self, rows: int, tokens: TokenRange) -> KernelCall:
        return self._call(DISPATCH, rows, tokens, [], rows)

    def _in_three_launches(self, rows: int, tokens: TokenRange, outputs: Sequence[relax.TensorType]) -> list[relax.Var]:
        node, pairs = self._node, self._ids.ty.shape[0] * self._ids.ty.shape[1]
        table = relax.TensorType((chunks_for(pairs), self._experts), "int32")
        (counts,) = node.call(self._call(COUNT_PAIRS, rows, tokens, []), [table])
        placed = node.call(self._call(PLACE_CHUNKS, rows, tokens, [counts], rows), [table, *outputs])
        starts, padded, *others = placed
        sorted_pairs = node.call_on(self._call(SCATTER_PAIRS, rows, tokens, [starts]), [padded])
        return [*sorted_pairs, *others]

    def _call(
        self, kernel: Kernel, rows: int, tokens: TokenRange, arguments: Sequence[relax.Expr], *options: int
    ) -> KernelCall:
        """A call of a kernel for blocks of ``rows``, launched only for the numbers of ``tokens``."""
        function = tokens.limited(kernel.build(self._experts, *options), 0)
        operands = [*tokens.numbers(self._node.lowering), self._ids, *arguments]
        attributes = {"experts": self._experts, "block_rows": rows, "tokens": str(tokens)}
        chosen = self._node.select((kernel,), self._experts)
        return KernelCall(chosen, function, operands, attributes, tokens.names)


def dispatch_rows(node: NodeLowering, ids: relax.Expr, experts: int) -> list[relax.Var]:
    """Offsets, positions, tokens and owners: the results of ``moec.Dispatch`` for ids [T, k]. Pairs without an expert
    are sorted after those of the last expert."""
    (chosen,) = node.lowering.compute(lambda ids: _with_outside(ids, experts), [ids], "experts_or_outside")
    slots, pairs = ids.ty.shape[1], ids.ty.shape[0] * ids.ty.shape[1]
    blocks = BlockDispatch(node, experts + 1, chosen, pairs).into_blocks(1, SizeRange(0), TokenRange())
    shapes = [(experts + 1,), (ids.ty.shape[0], slots), (pairs,), (pairs,)]
    outputs = [relax.TensorType(shape, "int32") for shape in shapes]
    arguments = [blocks.sorted_pairs, blocks.experts]
    selected = node.select((DESCRIBE_ROWS,), experts)
    return node.call(KernelCall(selected, describe_rows(experts), arguments, {"experts": experts}), outputs)


def _with_outside(ids: te.Tensor, experts: int) -> te.Tensor:
    def expert(*at: Any) -> Any:
        is_expert = tirx.all(ids(*at) >= 0, ids(*at) < experts)
        return tirx.if_then_else(is_expert, ids(*at), tirx.IntImm("int32", experts))

    return te.compute(ids.shape, expert, name="experts_or_outside")
