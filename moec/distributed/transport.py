"""Parcels of bytes from each rank to the others, over a process group of torch.distributed.

Each parcel is a message of its own, and all receives are posted before the first send. gloo tells a sender that its
receiver is ready on the connection that carries the data of the other direction, so a receive that is posted late waits
behind them: ``all_to_all_single`` posts in turn, and was up to 11% slower (benchmarks/results/ranks.md). An engine that
groups messages itself, as NCCL does, has nothing to gain from this order and should get ``all_to_all_single``.

Arrays of bytes become tensors over the same memory; their element types never reach torch, which lacks some of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from moec.distributed.group import RankGroup


@dataclasses.dataclass(frozen=True)
class Arrival:
    """Parcels under way to this rank, ``parcels`` uint8 for each source, and those that it ``sent`` at the same
    time. The works go before the memory that they use."""

    works: tuple[Any, ...]
    parcels: tuple[np.ndarray, ...]
    sent: tuple[np.ndarray, ...]

    def wait(self) -> tuple[np.ndarray, ...]:
        """Wait until all parcels are here and what this rank sends may be changed."""
        for work in self.works:
            work.wait()
        return self.parcels


def cut(array: np.ndarray, sizes: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """Cut an array into consecutive parts of these sizes. A layer does this often; numpy's own takes 12 us."""
    parts, start = [], 0
    for size in sizes:
        parts.append(array[start : start + size])
        start += int(size)
    return parts


def swap(group: RankGroup, sent: Sequence[np.ndarray], received: Sequence[int] | np.ndarray) -> Arrival:
    """Begin to send each rank its parcel of ``sent``, uint8 [R][bytes], and to receive so many bytes from each. The
    parcel from this rank is the one that it sends to itself. Empty parcels are not sent."""
    import torch
    from torch import distributed

    parcels = [sent[rank] if rank == group.rank else np.empty(size, np.uint8) for rank, size in enumerate(received)]
    processes = group.processes
    others = [*range(group.rank + 1, group.size), *range(group.rank)]  # not all to the same rank first
    works = [
        distributed.irecv(torch.from_numpy(parcels[rank]), group=processes, group_src=rank)
        for rank in others
        if len(parcels[rank])
    ]
    works += [
        distributed.isend(torch.from_numpy(sent[rank]), group=processes, group_dst=rank)
        for rank in others
        if len(sent[rank])
    ]
    return Arrival(tuple(works), tuple(parcels), tuple(sent))


def swap_counts(group: RankGroup, counts: np.ndarray) -> np.ndarray:
    """Tell each rank a number, int64 [R], and return those that the ranks tell this one."""
    parcels = swap(group, [*counts[:, None].view(np.uint8)], [counts.itemsize] * group.size).wait()
    return np.concatenate(parcels).view(np.int64)
