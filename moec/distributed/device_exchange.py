"""The exchange of rows in the memory of GPUs: PyTorch's tensors go to the process group as they are.

Rows, experts, weights and results never pass the host, whatever the engine of the group (NCCL; gloo, where the GPU is
emulated). The host learns numbers alone, R or 3 R at a time, because it allocates tensors and cuts messages. Bytes are
those of :class:`moec.distributed.exchange.RowExchange`, and so are results.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from moec.distributed.exchange import RowExchange
from moec.distributed.group import RankGroup
from moec.placing.placement import ExpertPlacement, candidates
from moec.placing.volume import COUNT_BYTES, Transport
from moec.runtime.ranks import ReceivedRows


@dataclasses.dataclass
class _TableLayout:
    """Columns of a table of rows, uint8 [n,width]: ``row`` bytes, then ``k`` experts int32, then weights."""

    row: int
    k: int
    width: int
    dtype: Any
    weights: Any

    def experts_in(self, table: Any) -> Any:
        """Copy the experts, int32 [n,k]."""
        import torch

        return table[:, self.row : self.row + 4 * self.k].contiguous().view(torch.int32).reshape(len(table), self.k)

    def set_experts(self, table: Any, experts: Any) -> None:
        """Write experts into the table."""
        table[:, self.row : self.row + 4 * self.k] = _bytes_of(experts)


@dataclasses.dataclass
class _DeviceSending:
    """The state of one layer's exchange between its calls. ``pairs``: of this rank's tokens; ``own`` [T,width]: their
    table; ``destinations`` [T,k]; ``arriving``: rows of other ranks, of which each sends ``rows_from`` [R]; ``results``
    [R]: pairs that each rank returns; ``counts`` [R]: pairs that this rank computes for each."""

    layout: _TableLayout
    pairs: int
    own: Any
    destinations: Any
    work: Any
    arriving: Any
    sent: Any
    rows_from: list[int]
    results: list[int]
    counts: list[int] = dataclasses.field(default_factory=list)


class DeviceExchange(RowExchange):
    """The exchange of this rank with all others, for tensors of PyTorch on one device. It counts no time of waiting, so
    that runs do not take turns: kernels of a GPU run while its host waits anyway."""

    def __init__(self, group: RankGroup, placement: ExpertPlacement, transport: Transport | None = None) -> None:
        super().__init__(group, placement, transport)
        self._under_way: dict[int, _DeviceSending] = {}
        self._tables: dict[int, tuple[Any, Any]] = {}

    def twin(self) -> RowExchange:
        other = super().twin()
        assert isinstance(other, DeviceExchange)
        other._under_way = {}
        return other

    def begin_run(self) -> None:
        self._under_way.clear()

    def send(self, layer: int, rows: Any, experts: Any, weights: Any | None) -> None:
        import torch

        parts = [_bytes_of(part) for part in (rows, experts, weights) if part is not None]
        width = sum(part.shape[1] for part in parts)
        no_type = None if weights is None else weights.dtype
        layout = _TableLayout(parts[0].shape[1], experts.shape[1], width, rows.dtype, no_type)
        own, ids = torch.cat(parts, 1), experts
        if self._idle:
            own, ids = own[:0], ids[:0]
        destinations = self._destinations_of(layer, ids)
        with self.group.collective("dispatch of rows", layer):
            sending = self._begin(layout, experts.numel(), own, ids, destinations)
        self._under_way[layer] = sending
        self.traffic[layer].out += len(sending.sent) * width + (self.group.size - 1) * COUNT_BYTES
        self.meanwhile()

    def receive(self, layer: int) -> ReceivedRows:
        import torch

        sending, rank = self._under_way[layer], self.group.rank
        with self.group.collective("dispatch of rows", layer):
            sending.work.wait()
        layout, before = sending.layout, sum(sending.rows_from[:rank])
        table = torch.cat([sending.arriving[:before], sending.own, sending.arriving[before:]])
        experts = layout.experts_in(table)
        mine = experts >= 0
        mine[before : before + len(sending.own)] = sending.destinations == rank
        sizes = [*sending.rows_from]
        sizes[rank] = len(sending.own)
        sending.counts = _numbers(torch.stack([part.sum() for part in mine.split(sizes)]))
        pairs = _first_places(mine, sum(sending.counts))
        chosen = table[pairs // layout.k]
        weights: Any = None
        if layout.weights is not None:
            start = layout.row + 4 * layout.k
            typed = table[:, start:].contiguous().view(layout.weights).reshape(len(table), layout.k)
            weights = typed.reshape(-1)[pairs]
        rows: Any = chosen[:, : layout.row].contiguous().view(layout.dtype)
        return ReceivedRows(rows, experts.reshape(-1)[pairs], weights)

    def give_back(self, layer: int, results: Any) -> Any:
        import torch

        sending, rank = self._under_way.pop(layer), self.group.rank
        message = _bytes_of(results)
        size, count = message.shape[1], sum(sending.results)
        into = message.new_empty((count, size))
        with self.group.collective("return of rows", layer):
            work = self._all_to_all(into, message, sending.results, sending.counts)
        self.meanwhile()
        with self.group.collective("return of rows", layer):
            work.wait()
        self.traffic[layer].back += (sum(sending.counts) - sending.counts[rank]) * size
        order = torch.argsort(sending.destinations.reshape(-1), stable=True)
        own = message.new_zeros((sending.pairs, size))
        own[order[len(order) - count :]] = into
        return own.view(results.dtype)

    def _begin(self, layout: _TableLayout, pairs: int, own: Any, experts: Any, destinations: Any) -> _DeviceSending:
        """Tell the ranks how many rows they get, and begin to send these."""
        import torch

        ranks, rank = self.group.size, self.group.rank
        numbers = torch.arange(ranks, dtype=destinations.dtype, device=destinations.device)
        computes = destinations[None] == numbers[:, None, None]
        is_sent = computes.any(2)
        is_sent[rank] = False
        if self._transport == "allgather":
            is_sent = is_sent.any(0, keepdim=True).expand(ranks, -1).clone()
            is_sent[rank] = False
        rows_sent = is_sent.sum(1)
        rows_received = torch.empty_like(rows_sent)
        self._all_to_all(rows_received, rows_sent, [1] * ranks, [1] * ranks).wait()
        rows_to, rows_from, results = _numbers(torch.stack([rows_sent, rows_received, computes.sum((1, 2))]))
        places = _first_places(is_sent, sum(rows_to))
        receivers, tokens = places // max(1, len(own)), places % max(1, len(own))
        sent = own[tokens]
        theirs = destinations[tokens] == receivers[:, None].to(destinations.dtype)
        layout.set_experts(sent, torch.where(theirs, experts[tokens], -1))
        arriving = own.new_empty((sum(rows_from), layout.width))
        work = self._all_to_all(arriving, sent, rows_from, rows_to)
        return _DeviceSending(layout, pairs, own, destinations, work, arriving, sent, rows_from, results)

    def _all_to_all(self, into: Any, sent: Any, received: list[int], counts: list[int]) -> Any:
        """Begin to send consecutive rows to the ranks. ``received`` and ``counts`` [R]: rows from and to each."""
        from torch import distributed

        return distributed.all_to_all_single(into, sent, received, counts, group=self.group.processes, async_op=True)

    def _destinations_of(self, layer: int, experts: Any) -> Any:
        """Choose the rank that computes each pair, as :meth:`moec.placing.placement.LayerPlacement.destinations`, and
        -1 where nobody does."""
        import torch

        rank, placed = self.group.rank, self._placement.layers[layer]
        if layer not in self._tables:
            counts, table = candidates(placed, rank, self._placement.nodes)
            self._tables[layer] = (
                torch.from_numpy(counts).to(experts.device),
                torch.from_numpy(table).to(experts.device),
            )
        counts, table = self._tables[layer]
        turns = rank + torch.arange(len(experts), device=experts.device)[:, None]
        is_placed = (experts >= 0) & (experts < placed.experts)
        ids = torch.where(is_placed, experts, 0).long()
        chosen = torch.where(is_placed, table[ids, turns % counts[ids]], rank)
        return torch.where(experts >= 0, chosen, -1)


def _bytes_of(tensor: Any) -> Any:
    """View a tensor [n,m] as uint8 [n, m * itemsize]."""
    import torch

    size = tensor.shape[1] * tensor.element_size()
    return tensor.contiguous().reshape(-1).view(torch.uint8).reshape(len(tensor), size)


def _first_places(mask: Any, count: int) -> Any:
    """List the places where a mask of ``count`` ones is set, in order, without asking the device how many there are."""
    import torch

    return torch.argsort((~mask).reshape(-1).to(torch.uint8), stable=True)[:count]


def _numbers(tensor: Any) -> Any:
    """Read small integers from the device: the host waits for them. Nothing else leaves the device."""
    return tensor.tolist()
