"""The bytes that a launch moves: from memory, and between the second-level cache and the multiprocessors.

Assumption: the cache still holds data that a launch reads again, or that the preceding launch wrote, if it fits into
half of the cache. The tiles of a block of rows are computed side by side, followed by those of the expert's next block.
A matrix therefore comes from memory once if it fits, or if the tiles of all blocks of its rows are computed at the same
time.
"""

from __future__ import annotations

import dataclasses

from moec.targets.cuda.launch_model.gpus import Gpu
from moec.targets.cuda.launch_model.plans import ProductPlan, TilePlan, WarpPlan
from moec.targets.cuda.launch_model.rows import RowSpread


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes that move between memory and the cache (``memory``), and between the cache and multiprocessors (``l2``)."""

    memory: float
    l2: float


def stays(gpu: Gpu, size: float) -> bool:
    """Whether ``size`` bytes are still in the second-level cache when they are read again."""
    return size <= gpu.l2_bytes / 2


def tile_traffic(plan: TilePlan, gpu: Gpu, spread: RowSpread, tokens: int, together: int = 1) -> Traffic:
    """The traffic of all tiles, of which ``together`` are computed at the same time. Rows of padding are not read."""
    product, blocks = plan.product, spread.blocks(plan.rows)
    across = -(-product.columns // plan.columns)
    row, result = product.inner * product.row_bytes, product.width * product.out_bytes
    in_turn = spread.blocks(plan.rows * max(plan.band, together // across, 1))
    matrices = product.matrix_bytes * (spread.used if stays(gpu, product.matrix_bytes) else in_turn)
    moved = matrices + _once(gpu, _different_rows(product, spread, tokens) * row, spread.pairs * row)
    read = blocks * product.matrix_bytes * own_share(plan, spread) + across * spread.pairs * row
    return Traffic(moved + kept(gpu, spread.pairs * result), read + spread.pairs * result)


def own_share(plan: TilePlan, spread: RowSpread) -> float:
    """The share of a matrix that a block of threads copies itself. The other blocks of its cluster copy the rest if
    they have rows of the same expert."""
    return 1 - (1 - 1 / plan.cluster) * spread.neighbours(plan.rows)


def warp_traffic(plan: WarpPlan, gpu: Gpu, spread: RowSpread, tokens: int) -> Traffic:
    """The traffic of warps, whose rows (or groups of rows) each read their expert's matrix, one after another or side
    by side."""
    product, groups = plan.product, -(-spread.pairs // plan.rows)
    row, result = product.inner * product.row_bytes, product.width * product.out_bytes
    once = plan.side_by_side or stays(gpu, product.matrix_bytes)
    matrices = product.matrix_bytes * (spread.used if once else groups)
    moved = matrices + kept(gpu, _different_rows(product, spread, tokens) * row)
    read = groups * (product.matrix_bytes + product.columns / plan.columns * plan.rows * row)
    return Traffic(moved + kept(gpu, spread.pairs * result), read + spread.pairs * result)


def tensor_traffic(gpu: Gpu, read: float, written: float) -> Traffic:
    """The traffic of tensors that are read and written once."""
    return Traffic(kept(gpu, read) + kept(gpu, written), read + written)


def least_bytes(product: ProductPlan, spread: RowSpread, tokens: int) -> float:
    """The least bytes of a product, whichever kernel computes it: matrices in use, rows and results once each."""
    rows = _different_rows(product, spread, tokens) * product.inner * product.row_bytes
    return product.matrix_bytes * spread.used + rows + spread.pairs * product.width * product.out_bytes


def _different_rows(product: ProductPlan, spread: RowSpread, tokens: int) -> int:
    return min(tokens, spread.pairs) if product.gathered else spread.pairs


def kept(gpu: Gpu, size: float) -> float:
    """The bytes that go to memory, of ``size`` bytes that another launch wrote or will read: none if they stay in the
    cache."""
    return 0.0 if stays(gpu, size) else size


def _once(gpu: Gpu, different: float, read: float) -> float:
    """The bytes that come from memory, for ``different`` bytes of which ``read`` are read in all, with repetitions:
    none if they stay in the cache, otherwise every read."""
    return 0.0 if stays(gpu, different) else read
