"""Pairs of a token and an expert, sorted by expert into blocks of rows: in PyTorch, without waiting for the device."""

from __future__ import annotations

import dataclasses

import torch

PADDING = -1


@dataclasses.dataclass(frozen=True)
class SortedPairs:
    """Pairs by block, both int32. ``pairs`` [blocks * rows]: the pair (token * k + slot) of each row, -1 for padding.
    ``experts`` [blocks]: the expert of each block, -1 for blocks that are not needed."""

    pairs: torch.Tensor
    experts: torch.Tensor


def most_blocks(pairs: int, experts: int, rows: int) -> int:
    """Bound the number of blocks: every expert with a pair has at most one block that is not full."""
    partly_filled = min(pairs, experts)
    return (pairs + partly_filled * (rows - 1)) // rows


def sort_pairs(ids: torch.Tensor, experts: int, rows: int) -> SortedPairs:
    """Sort the pairs by expert. ``ids``: the experts [T, k] of all pairs."""
    flat = ids.flatten()
    by_expert, order = torch.sort(flat, stable=True)
    numbers = torch.arange(experts, device=flat.device)
    ends = torch.searchsorted(by_expert, numbers, right=True)
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    block_ends = torch.cumsum((counts + rows - 1) // rows, 0)
    first_rows = (block_ends - (counts + rows - 1) // rows) * rows
    blocks = most_blocks(len(flat), experts, rows)
    places = first_rows[by_expert] + torch.arange(len(flat), device=flat.device) - (ends - counts)[by_expert]
    pairs = torch.full((blocks * rows,), PADDING, dtype=torch.int32, device=flat.device)
    pairs[places] = order.to(torch.int32)
    owners = torch.searchsorted(block_ends, torch.arange(blocks, device=flat.device), right=True)
    owners = torch.where(owners < experts, owners, PADDING)
    return SortedPairs(pairs, owners.to(torch.int32))
