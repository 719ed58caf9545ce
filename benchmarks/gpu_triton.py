"""A fused MoE layer in Triton, as in inference servers: pairs sorted by expert into blocks of rows, and two products.

The first product gathers its rows and multiplies them with matching columns of gate and up, so that the activation is
its epilogue; the second weights its results and writes them to the pair's row. Nothing waits for the host: the grid is
as large as the number of padded blocks can be.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from gpu_layers import GpuWeights, route
from gpu_sorting import most_blocks, sort_pairs

FEW_ROWS, MANY_ROWS = 16, 128


@triton.jit
def up_kernel(
    x_ptr, up_ptr, hidden_ptr, pairs_ptr, experts_ptr, CHOSEN: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PANEL: tl.constexpr,
):  # fmt: skip
    """Compute hidden[pair] = silu(x @ gate) * (x @ up) for a block of pairs and of hidden units."""
    block = tl.program_id(1)
    expert = tl.load(experts_ptr + block).to(tl.int64)
    if expert < 0:
        return
    pairs = tl.load(pairs_ptr + block * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    is_pair = pairs >= 0
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < HIDDEN
    steps = tl.arange(0, PANEL)
    x_tile = x_ptr + (pairs // CHOSEN)[:, None] * WIDTH + steps[None, :]
    gate_tile = up_ptr + (expert * 2 * HIDDEN + columns)[None, :] * WIDTH + steps[:, None]
    gate_sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    up_sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, WIDTH, PANEL):
        in_row = start + steps < WIDTH
        x = tl.load(x_tile + start, mask=is_pair[:, None] & in_row[None, :], other=0.0)
        mask = in_row[:, None] & inside[None, :]
        gate_sums = tl.dot(x, tl.load(gate_tile + start, mask=mask, other=0.0), gate_sums)
        up_sums = tl.dot(x, tl.load(gate_tile + HIDDEN * WIDTH + start, mask=mask, other=0.0), up_sums)
    hidden = gate_sums * tl.sigmoid(gate_sums) * up_sums
    target = hidden_ptr + pairs[:, None] * HIDDEN + columns[None, :]
    tl.store(target, hidden.to(hidden_ptr.dtype.element_ty), mask=is_pair[:, None] & inside[None, :])


@triton.jit
def down_kernel(
    hidden_ptr, down_ptr, results_ptr, scores_ptr, pairs_ptr, experts_ptr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PANEL: tl.constexpr,
):  # fmt: skip
    """Compute results[pair] = score * (hidden[pair] @ down) for a block of pairs and of outputs."""
    block = tl.program_id(1)
    expert = tl.load(experts_ptr + block).to(tl.int64)
    if expert < 0:
        return
    pairs = tl.load(pairs_ptr + block * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    is_pair = pairs >= 0
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < WIDTH
    steps = tl.arange(0, PANEL)
    hidden_tile = hidden_ptr + pairs[:, None] * HIDDEN + steps[None, :]
    down_tile = down_ptr + (expert * WIDTH + columns)[None, :] * HIDDEN + steps[:, None]
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, HIDDEN, PANEL):
        in_row = start + steps < HIDDEN
        hidden = tl.load(hidden_tile + start, mask=is_pair[:, None] & in_row[None, :], other=0.0)
        matrix = tl.load(down_tile + start, mask=in_row[:, None] & inside[None, :], other=0.0)
        sums = tl.dot(hidden, matrix, sums)
    scores = tl.load(scores_ptr + pairs, mask=is_pair, other=0.0)
    target = results_ptr + pairs[:, None] * WIDTH + columns[None, :]
    sums = (sums * scores[:, None]).to(results_ptr.dtype.element_ty)
    tl.store(target, sums, mask=is_pair[:, None] & inside[None, :])


def fused_moe(weights: GpuWeights, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Compute the layer's results [T, d]."""
    layer, tokens = weights.layer, len(x)
    scores, ids = route(logits, layer.chosen)
    pairs = tokens * layer.chosen
    rows = FEW_ROWS if pairs <= FEW_ROWS * layer.experts else MANY_ROWS
    order = sort_pairs(ids, layer.experts, rows)
    hidden = torch.empty((pairs, layer.hidden), dtype=x.dtype, device=x.device)
    results = torch.empty((pairs, layer.width), dtype=x.dtype, device=x.device)
    sizes = {"WIDTH": layer.width, "HIDDEN": layer.hidden}
    grid, tile = _launch(layer.hidden, pairs, layer.experts, rows, products=2)
    up_kernel[grid](x, weights.up, hidden, order.pairs, order.experts, layer.chosen, **sizes, **tile)
    grid, tile = _launch(layer.width, pairs, layer.experts, rows, products=1)
    down_kernel[grid](hidden, weights.down, results, scores, order.pairs, order.experts, **sizes, **tile)
    return results.view(tokens, layer.chosen, -1).sum(1)


def _launch(width: int, pairs: int, experts: int, rows: int, products: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Select grid and tile of a product with ``width`` columns, ``products`` of them together in registers."""
    columns = 128 // products if rows == FEW_ROWS else 256 // products
    options = {"ROWS": rows, "COLUMNS": columns, "PANEL": 64}
    if rows == MANY_ROWS:
        options |= {"num_warps": 8, "num_stages": 3}
    return (triton.cdiv(width, columns), most_blocks(pairs, experts, rows)), options
