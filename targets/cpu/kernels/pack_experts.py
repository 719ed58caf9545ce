"""Packing of expert weights into the tile order of :mod:`moec.targets.cpu.kernels.grouped_gemm`.

All layouts of :class:`~moec.ir.dialect.ExpertsSpec` end here: the kernels know one order only. Packing goes expert by
expert, so that apart from the result it needs the memory of one expert, also where the weights are mapped from a file.
"""

from __future__ import annotations

import numpy as np

from moec.ir.dialect import ExpertsSpec
from moec.targets.cpu.kernels.grouped_gemm import GroupedProblem


def _columns_last(weight: np.ndarray, transposed: bool) -> np.ndarray:
    """One expert's weight as [in, out]."""
    return weight if transposed else weight.T


def _split(spec: ExpertsSpec, fused: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gate and up parts of an array that holds both along its last axis."""
    if spec.gate_layout == "interleaved":
        return fused[..., 0::2], fused[..., 1::2]
    half = fused.shape[-1] // 2
    first, second = fused[..., :half], fused[..., half:]
    return (first, second) if spec.gate_layout == "gate_up" else (second, first)


def _tiles(problem: GroupedProblem, *parts: np.ndarray) -> np.ndarray:
    """Parts [K, width] (gate and up, or one alone) as [column tile, K, columns], missing columns zero."""
    inner = parts[0].shape[0]
    tiled = np.zeros((problem.column_tiles, inner, len(parts), problem.tile_width), parts[0].dtype)
    for tile in range(problem.column_tiles):  # tile by tile, so that reading across the rows of a weight stays in cache
        for position, part in enumerate(parts):
            columns = part[:, tile * problem.tile_width : (tile + 1) * problem.tile_width]
            tiled[tile, :, position, : columns.shape[1]] = columns
    return tiled.reshape(problem.column_tiles, inner, problem.columns)


def pack_up(problem: GroupedProblem, spec: ExpertsSpec, up: np.ndarray, gate: np.ndarray | None) -> np.ndarray:
    """The first product's weights [E, column tile, d, columns] from ``up`` (and ``gate``) as the operator has them."""
    packed = np.empty(problem.weight_shape, up.dtype)
    for expert in range(problem.experts):
        columns = _columns_last(up[expert], spec.up_transposed)
        if not spec.gated:
            parts: tuple[np.ndarray, ...] = (columns,)
        elif spec.gate_layout == "separate":
            assert gate is not None
            parts = (_columns_last(gate[expert], spec.up_transposed), columns)
        else:
            parts = _split(spec, columns)
        packed[expert] = _tiles(problem, *parts)
    return packed


def pack_columns(problem: GroupedProblem, weight: np.ndarray, transposed: bool) -> np.ndarray:
    """Weights without a gate: [E, out, in], or [E, in, out] if ``transposed``, as [E, column tile, K, columns]."""
    packed = np.empty(problem.weight_shape, weight.dtype)
    for expert in range(problem.experts):
        packed[expert] = _tiles(problem, _columns_last(weight[expert], transposed))
    return packed


def pack_up_bias(
    problem: GroupedProblem, spec: ExpertsSpec, up_bias: np.ndarray | None, gate_bias: np.ndarray | None
) -> np.ndarray:
    """The first product's bias [E, column tile, columns] in float32; zero where the operator has none."""
    zero = np.zeros((problem.experts, problem.width), np.float32)
    if not spec.gated:
        parts = [zero if up_bias is None else up_bias]
    elif spec.gate_layout == "separate":
        parts = [zero if gate_bias is None else gate_bias, zero if up_bias is None else up_bias]
    else:
        parts = [zero, zero] if up_bias is None else list(_split(spec, up_bias))
    return _bias_tiles(problem, parts)


def pack_bias(problem: GroupedProblem, bias: np.ndarray | None) -> np.ndarray:
    """A bias [E, out] without a gate as [E, column tile, columns] in float32; zero where there is none."""
    return _bias_tiles(problem, [np.zeros((problem.experts, problem.width), np.float32) if bias is None else bias])


def _bias_tiles(problem: GroupedProblem, parts: list[np.ndarray]) -> np.ndarray:
    tiles = _tiles(problem, *(part.astype(np.float32) for part in parts))
    return np.ascontiguousarray(tiles.transpose(1, 0, 2))
