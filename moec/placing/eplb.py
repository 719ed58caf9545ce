"""EPLB, DeepSeek's expert parallelism load balancer (https://github.com/deepseek-ai/EPLB), and its result as slots.

1. Groups of experts are packed on nodes, equally many on each, where the number of nodes divides that of groups:
   routers that are limited to groups then reach few nodes. Otherwise all nodes count as one.
2. A node gives each further slot to the expert with the highest load per replica (:func:`replicate`).
3. The replicas of a node are packed on its ranks, equally many on each (:func:`pack`).

Numbers are float32, as in the original, so that ties and roundings are those of the original. Where numbers do not
divide, which the original refuses, some nodes and ranks have one slot more than others. Two replicas of an expert may
come to one rank, which :func:`distinct` mends.

Sizes: L layers, E experts, S slots, R ranks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moec.common.errors import MoecError

Array = np.ndarray[Any, Any]
Slots = list[list[int]]
"""Experts of each rank of a layer."""


def balanced(loads: Array, replicas: int, ranks: int, nodes: int, groups: int, offset: float = 0.0) -> Slots:
    """Place the experts of one layer, of loads [E], as :func:`rebalance`, with distinct experts on every rank."""
    slots = rebalance(loads[None], len(loads) + replicas, groups, nodes, ranks, offset)[0]
    return distinct(slots, loads, nodes if are_grouped(groups, nodes) else 1)


def rebalance(loads: Array, slots: int, groups: int, nodes: int, ranks: int, offset: float = 0.0) -> list[Slots]:
    """Select the experts of each rank for loads [L,E], in the order of the original: for each layer the slots of each
    rank, ``slots`` in all.

    ``groups``: consecutive experts of equal number that a router selects together. ``offset``: of :func:`replicate`.
    Raises MoecError where there are fewer slots than experts or groups do not divide experts."""
    layers, experts = loads.shape
    if slots < experts or groups < 1 or experts % groups or ranks % nodes:
        raise MoecError(
            f"EPLB of {experts} experts in {groups} groups, {slots} slots on {ranks} ranks of {nodes} nodes: expected "
            "a slot for every expert, groups that divide the experts and nodes that divide the ranks"
        )
    loads = loads.astype(np.float32)
    if not are_grouped(groups, nodes):
        groups = nodes = 1
    size, per_node = experts // groups, groups // nodes
    of_groups = loads.reshape(layers, groups, size).sum(-1, dtype=np.float32)
    node_of, place = pack(of_groups, nodes)
    order = np.argsort(node_of * per_node + place, axis=1)  # groups [L,groups], node by node
    members = (order[:, :, None] * size + np.arange(size)).reshape(layers, nodes, -1)
    placed: list[Slots] = [[] for _ in range(layers)]
    for node in range(nodes):
        own = members[:, node]
        of_node = slots * (node + 1) // nodes - slots * node // nodes
        for layer, packed in enumerate(_placed(np.take_along_axis(loads, own, 1), of_node, ranks // nodes, offset)):
            placed[layer] += [[int(own[layer, expert]) for expert in rank] for rank in packed]
    return placed


def are_grouped(groups: int, nodes: int) -> bool:
    """Whether groups of experts stay on their nodes."""
    return groups % nodes == 0 and nodes > 1


def _placed(loads: Array, slots: int, ranks: int, offset: float) -> list[Slots]:
    """Replicate the experts of a node, of loads [L,E], and pack them on its ranks."""
    expert_of, counts = replicate(loads, slots, offset)
    per_replica = np.take_along_axis(loads / counts.astype(np.float32), expert_of, 1)
    rank_of, place = pack(per_replica, ranks)
    results = []
    for layer, experts in enumerate(expert_of):
        order = np.lexsort((place[layer], rank_of[layer]))
        rows = np.split(experts[order], np.cumsum(np.bincount(rank_of[layer], minlength=ranks))[:-1])
        results.append([row.tolist() for row in rows])
    return results


def replicate(loads: Array, slots: int, offset: float = 0.0) -> tuple[Array, Array]:
    """Give each slot beyond one per expert to the expert with the highest load per replica; the first of equals.

    ``loads`` is [L,E]. ``offset`` from 0 to 1 is taken from the numbers of replicas: the higher it is, the more experts
    have a second replica before others have a third. It is 0 in the original.

    Returns the expert of each slot [L,S] and the number of replicas of each expert [L,E]."""
    layers, experts = loads.shape
    expert_of = np.tile(np.arange(slots), (layers, 1))
    counts = np.ones((layers, experts), np.int64)
    for slot in range(experts, slots):
        hottest = np.argmax(loads / (counts - offset).astype(np.float32), axis=1)
        expert_of[:, slot] = hottest
        counts[np.arange(layers), hottest] += 1
    return expert_of, counts


def pack(loads: Array, packs: int) -> tuple[Array, Array]:
    """Pack things into packs of equally many: in descending order of load, each goes to the pack of the least load that
    has room.

    ``loads`` is [L,n]; of things with equal loads the first comes first. Packs have n/packs things, rounded down or up.
    Returns the pack of each thing and its place in the pack, both [L,n]. As many things as packs stay where they are.
    """
    layers, things = loads.shape
    if things == packs:
        return np.tile(np.arange(things), (layers, 1)), np.zeros((layers, things), np.int64)
    every = np.arange(layers)
    least, larger = divmod(things, packs)
    pack_of, place = np.zeros((layers, things), np.int64), np.zeros((layers, things), np.int64)
    totals = np.zeros((layers, packs), loads.dtype)
    counts = np.zeros((layers, packs), np.int64)
    for thing in np.argsort(-loads, axis=1, kind="stable").T:
        full = (counts > least).sum(axis=1, keepdims=True) >= larger
        has_room = (counts < least) | ((counts == least) & ~full)
        chosen = np.argmin(np.where(has_room, totals, np.inf), axis=1)
        pack_of[every, thing], place[every, thing] = chosen, counts[every, chosen]
        totals[every, chosen] += loads[every, thing]
        counts[every, chosen] += 1
    return pack_of, place


def distinct(slots: Slots, loads: Array, nodes: int = 1) -> Slots:
    """Mend ranks that have two replicas of an expert, for loads [E] of a layer. Slots stay on their node, of ``nodes``.

    The second replica changes places with a replica of another rank, such that no rank has an expert twice afterwards
    and the higher load of the two ranks is least. Where no rank can change, the replica is dropped: its rank computes
    the same rows of the expert in one slot."""
    if nodes > 1:
        size = len(slots) // nodes
        return [rank for first in range(0, len(slots), size) for rank in distinct(slots[first : first + size], loads)]
    slots = [list(rank) for rank in slots]
    for rank, own in enumerate(slots):
        for expert in sorted(expert for expert in set(own) if own.count(expert) > 1):
            while own.count(expert) > 1:
                own.remove(expert)
                other = _partner(slots, rank, expert, loads)
                if other is not None:
                    to, back = other
                    slots[to].remove(back)
                    slots[to].append(expert)
                    own.append(back)
    return slots


def _partner(slots: Slots, rank: int, expert: int, loads: Array) -> tuple[int, int] | None:
    """Find the rank and its expert that a surplus replica, which ``rank`` has lost, changes places with."""
    counts = np.bincount([number for row in slots for number in row] + [expert], minlength=len(loads))
    shares = loads / np.maximum(counts, 1)
    totals = [sum(shares[number] for number in row) for row in slots]
    best: tuple[float, int, int] | None = None
    for to, row in enumerate(slots):
        if to == rank or expert in row:
            continue
        for back in sorted(set(row)):
            if back in slots[rank]:
                continue
            highest = max(totals[rank] + shares[back], totals[to] + shares[expert] - shares[back])
            if best is None or highest < best[0]:
                best = (highest, to, back)
    return None if best is None else best[1:]
