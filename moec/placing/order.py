"""Order of the ranks of layers: experts of consecutive layers that the same tokens select come to the same rank.

Ranks of a layer, and those of a node, are alike: renaming them changes neither loads nor pairs of a layer. ExFlow
(arXiv 2401.08383) shows what such an order is worth to transports that leave tokens where their experts are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moec.placing.eplb import Slots
from moec.placing.judge import shares

Array = np.ndarray[Any, Any]


def aligned(slots: Slots, before: Slots, following: Array, nodes: int) -> Slots:
    """Rename the ranks of a layer for ``following`` [E,E'], the tokens of an expert of the layer before that select an
    expert of this one. Nodes are renamed first, and then the ranks of each node."""
    size = len(slots) // nodes
    common = _spread(before, following.shape[0], nodes).T @ following @ _spread(slots, following.shape[1], nodes)
    of_nodes = common.reshape(nodes, size, nodes, size).sum(axis=(1, 3))
    order = []
    for node, other in enumerate(_matched(of_nodes)):
        inner = common[node * size : (node + 1) * size, other * size : (other + 1) * size]
        order += [other * size + rank for rank in _matched(inner)]
    return [slots[rank] for rank in order]


def _spread(slots: Slots, experts: int, nodes: int) -> Array:
    holders = np.zeros((experts, len(slots)), bool)
    for rank, own in enumerate(slots):
        holders[own, rank] = True
    return shares(holders, nodes)


def _matched(worth: Array) -> list[int]:
    """Match each row of a square matrix with a column of its own such that exchanging two of them makes the sum of
    their elements no higher. Largest elements first, then exchanges until none is better."""
    size = len(worth)
    columns, free = np.full(size, -1), set(range(size))
    for flat in np.argsort(-worth, axis=None, kind="stable"):
        row, column = divmod(int(flat), size)
        if columns[row] < 0 and column in free:
            columns[row] = column
            free.remove(column)
    rows = np.arange(size)
    for _ in range(size * size):
        chosen = worth[:, columns]  # [row, row whose column it would take]
        own = chosen[rows, rows]
        gain = chosen + chosen.T - own[:, None] - own[None, :]
        first, second = divmod(int(np.argmax(gain)), size)
        if gain[first, second] <= 1e-9 * max(1.0, float(worth.max(initial=0))):
            break
        columns[[first, second]] = columns[[second, first]]
    return columns.tolist()
