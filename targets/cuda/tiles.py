"""The tile that a block of threads computes, for people to read."""

from __future__ import annotations

from collections.abc import Callable

from moec.targets.cuda.kernels import grouped_gemm_simt, mma_tile
from moec.targets.cuda.kernels.grouped_gemm_wgmma import tile_columns
from moec.targets.cuda.kernels.grouped_problem import GroupedProblem

Tile = tuple[int, int, int]
"""Rows, columns, and the inputs of a panel."""


def _mma(problem: GroupedProblem) -> Tile:
    return problem.block_rows, mma_tile.COLUMNS, mma_tile.panel_depth(problem.dtype)


def _wgmma(problem: GroupedProblem) -> Tile:
    return problem.block_rows, tile_columns(problem), mma_tile.DEPTH


def _simt(problem: GroupedProblem) -> Tile:
    return problem.block_rows, grouped_gemm_simt.COLUMNS, grouped_gemm_simt.DEPTH


_TILES: dict[str, Callable[[GroupedProblem], Tile]] = {
    "grouped_gemm_mma": _mma,
    "grouped_gemm_wgmma": _wgmma,
    "grouped_gemm_simt": _simt,
    "gemm_mma": _mma,
    "gemm_wgmma": _wgmma,
    "gemm_simt": _simt,
}
"""By the name under which the selector knows a kernel."""


def tile_of(kernel: str, problem: GroupedProblem) -> dict[str, str]:
    """What the artifact says about the tile of a product; nothing for a kernel that has none."""
    if kernel not in _TILES:
        return {}
    rows, columns, inputs = _TILES[kernel](problem)
    return {"tile": f"{rows} rows x {columns} columns, {inputs} inputs at a time"}
