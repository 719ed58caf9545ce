"""Collectives of gloo on shaped links, beside the times that moec predicts for them.

    sudo python benchmarks/rank_links.py [--ranks 2,4,8] [--link 1Gbit/s,100us] [--slower 10] [--placements 10]

Each rank is a process in a network namespace of its own (``shaped_network.py``). ``--slower`` divides the bandwidth and
multiplies the latency: where the processors of this machine cannot carry the traffic of a link, they can carry that of
one with the same ratio of both, on which everything takes that many times longer.

The bandwidth is that of the link without the headers of packets. The latency is a third of what a message of a few
bytes takes from one rank to another and back, so it has the time that the processors take: gloo first sends a word that
the receiver is ready, which the answer need not wait for. The first table has collectives of
several sizes: ``all_to_all_single``, and the messages of moec's transports. The second one has a layer of experts with
skewed routing in several placements, exchanged as programs do; products of experts are sleeps of a fixed time per row.
All cases are run in turn, so that other work on the machine meets all alike, and the fastest run counts.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
import torch.distributed
from results import print_rows
from shaped_network import address, enter, name_of, namespaces, payload, problem

from moec.common.roofline import FLOAT32, Peak, Roofline
from moec.common.work import GroupedWork
from moec.distributed.exchange import RowExchange
from moec.distributed.group import RankGroup
from moec.distributed.transport import swap
from moec.placing.place import place
from moec.placing.placement import TRANSPORTS, ExpertPlacement, LayerPlacement, Transport, linear
from moec.placing.volume import COUNT_BYTES, RowBytes, exchange
from moec.predicting.layers import Experts, MicroBatch, Schedule, simulate
from moec.predicting.links import Link, Links, parse_link

REPETITIONS = 9
SIZES = (1_000, 100_000, 500_000)
"""Bytes that a rank sends to all others together."""
EXPERTS, K, TOKENS, COLUMNS = 32, 4, 48, 512
ROW_SHARE = 0.5
"""Seconds that a row computes, as a share of its time on the link."""
_PORT = 29_500
_WARM_UP, _WARM_UP_BYTES = 10, 200_000


@dataclasses.dataclass(frozen=True)
class Case:
    """Something to measure: the bytes [R,R] of a collective, or a layer of experts ``ids`` [R,T,k] in a ``placement``
    by a ``transport``, with ``pause`` seconds of sleep for each row."""

    kind: str
    sent: np.ndarray | None = None
    ids: np.ndarray | None = None
    placement: LayerPlacement | None = None
    transport: Transport = "alltoall"
    pause: float = 0.0


def call_of(case: Case, group: RankGroup) -> Callable[[], Any]:
    """Make the call that runs a case on a rank."""
    rank = group.rank
    if case.kind == "ping":
        return lambda: _ping(rank)
    if case.placement is not None and case.ids is not None:
        exchange = RowExchange(group, ExpertPlacement(group.size, (case.placement,)), case.transport)
        rows = np.zeros((TOKENS, COLUMNS), np.float32)
        ids = case.ids[rank]
        return lambda: _run_layer(exchange, rows, ids, case.pause)
    assert case.sent is not None
    outgoing, incoming = case.sent[rank].astype(int).tolist(), case.sent[:, rank].astype(int).tolist()
    if case.kind == "messages":
        parcels = [np.zeros(size, np.uint8) for size in outgoing]
        return lambda: swap(group, parcels, incoming).wait()
    source, target = (torch.zeros(sum(sizes), dtype=torch.uint8) for sizes in (outgoing, incoming))
    return lambda: torch.distributed.all_to_all_single(target, source, incoming, outgoing)


def _run_layer(exchange: RowExchange, rows: np.ndarray, ids: np.ndarray, pause: float) -> None:
    exchange.send(0, rows, ids, None)
    received = exchange.receive(0)
    time.sleep(pause * len(received.rows))
    exchange.give_back(0, received.rows)


def _ping(rank: int) -> None:
    message = torch.zeros(8, dtype=torch.uint8)
    steps = [torch.distributed.send, torch.distributed.recv]
    if rank < 2:
        for step in steps if rank == 0 else reversed(steps):
            step(message, 1 - rank)


def run_rank(rank: int, ranks: int, cases: list[Case], together: Barrier) -> list[list[tuple[float, float]]]:
    """Run all cases in turn and return for each repetition and case when it began and ended."""
    os.environ["GLOO_SOCKET_IFNAME"] = name_of_parent(rank)
    store = torch.distributed.TCPStore(address(0), _PORT, ranks, rank == 0)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    group = RankGroup(rank, ranks)
    for _ in range(_WARM_UP):  # TCP sends faster and faster at first
        call_of(Case("messages", np.full((ranks, ranks), _WARM_UP_BYTES)), group)()
    calls = [call_of(case, group) for case in cases]
    results = []
    for _ in range(1 + REPETITIONS):
        times = []
        for call in calls:
            together.wait()  # a barrier of torch.distributed lets ranks go a latency apart
            start = time.monotonic()
            call()
            times.append((start, time.monotonic()))
        results.append(times)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return results[1:]


def name_of_parent(rank: int) -> str:
    """Name the device of a rank, which its parent made."""
    return name_of(rank, os.getppid())


def measured(ranks: int, link: Link, cases: list[Case]) -> list[float]:
    """Measure the least seconds of each case: from the last rank's beginning to the last rank's end."""
    together = multiprocessing.get_context("fork").Barrier(ranks)
    with namespaces(ranks, link) as entries, contextlib.ExitStack() as stack:
        pipes, children = [], []
        for rank, entry in enumerate(entries):
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                enter(entry)
                os.write(writing, json.dumps(run_rank(rank, ranks, cases, together)).encode())
                os._exit(0)
            os.close(writing)
            pipes.append(stack.enter_context(os.fdopen(reading, "rb")))
            children.append(child)
        results = np.array([json.loads(pipe.read()) for pipe in pipes])  # [R, repetitions, cases, 2]
        for child in children:
            os.waitpid(child, 0)
    spans = results[..., 1].max(axis=0) - results[..., 0].max(axis=0)
    return spans.min(axis=0).tolist()


def collectives(ranks: int, links: Links) -> list[tuple[str, int, Case, float]]:
    """List collectives with their predicted seconds."""
    rows = []
    for size in SIZES:
        block = size // (ranks - 1)
        even = np.full((ranks, ranks), block) - np.diag([block] * ranks)
        uneven = even * np.linspace(0.2, 1.8, ranks)[:, None]
        for title, sent in (("even", even), ("uneven", uneven)):
            seconds = links.alltoall(sent).max()
            rows.append((f"all_to_all_single, {title}", size, Case("single", sent), seconds))
            rows.append((f"messages, {title}", size, Case("messages", sent), seconds))
    return rows


def placements(ranks: int, count: int, loads: np.ndarray) -> dict[str, LayerPlacement]:
    """Make placements of one layer: by its loads, in order, and at random."""
    results = {"linear": linear("experts", EXPERTS, ranks)}
    for replicas in (0, ranks, 2 * ranks):
        results[f"eplb, {replicas} replicas"] = place([loads], ranks, 1, replicas, method="eplb").layers[0]
    hot = np.argsort(-loads)
    results["hottest on one rank"] = _placed(hot, ranks)
    for seed in range(count - len(results)):
        results[f"random {seed}"] = _placed(np.random.default_rng(seed).permutation(EXPERTS), ranks)
    return dict(list(results.items())[:count])


def _placed(order: np.ndarray, ranks: int) -> LayerPlacement:
    slots = tuple(tuple(sorted(map(int, part))) for part in np.array_split(order, ranks))
    return LayerPlacement("experts", EXPERTS, slots)


def layer_cases(ranks: int, links: Links, count: int) -> list[tuple[str, Case, float]]:
    """List placements of a layer with Zipf's routing, with their predicted seconds."""
    random = np.random.default_rng(7)
    popularity = random.permutation(1 / np.arange(1, EXPERTS + 1))
    noise = random.gumbel(size=(ranks, TOKENS, EXPERTS)) + np.log(popularity)
    ids = np.argsort(-noise, axis=-1)[..., :K].astype(np.int32)
    width = RowBytes(COLUMNS * 4 + K * 4, COLUMNS * 4, COUNT_BYTES)
    pause = ROW_SHARE * width.out / links.inside.bandwidth
    roofline = Roofline(1, {"memory": 1e30}, (Peak(FLOAT32, "sleep", 2 / pause),))
    layer = Experts("experts", (GroupedWork(1, 1, 1, FLOAT32, (32.0,)),), width)
    rows = []
    loads = np.bincount(ids.ravel(), minlength=EXPERTS)
    for name, placed in placements(ranks, count, loads).items():
        counted = exchange(placed, [*ids])
        for transport in TRANSPORTS if name == "linear" else ("alltoall",):
            case = Case("layer", ids=ids, placement=placed, transport=transport, pause=pause)
            (predicted,) = simulate([layer], [[MicroBatch(counted)]], roofline, links, Schedule(transport))
            rows.append((name if transport == "alltoall" else f"{name}, {transport}", case, predicted.seconds))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="2,4,8")
    parser.add_argument("--link", default="1Gbit/s,100us")
    parser.add_argument("--slower", type=float, default=10.0)
    parser.add_argument("--placements", type=int, default=10)
    arguments = parser.parse_args()
    if (reason := problem()) is not None:
        sys.exit(f"skipped: {reason}")
    nominal = parse_link("--link", arguments.link)
    link = Link(nominal.bandwidth / arguments.slower, nominal.latency * arguments.slower)
    links = Links(payload(link), payload(link))
    for ranks in map(int, arguments.ranks.split(",")):
        (ping,) = measured(ranks, link, [Case("ping", np.zeros(ranks))])
        seen = dataclasses.replace(payload(link), latency=ping / 3)
        links = Links(seen, seen, engine="gloo")
        several = collectives(ranks, links)
        layered = layer_cases(ranks, links, arguments.placements)
        times = measured(ranks, link, [*(row[2] for row in several), *(row[1] for row in layered)])
        rows = [
            {"collective": name, "kB of a rank": size / 1e3, **_times(predicted, actual)}
            for (name, size, _, predicted), actual in zip(several, times, strict=False)
        ]
        print(f"\n{ranks} ranks, {arguments.link} slowed down {arguments.slower:g} times; ", end="")
        print(f"latency {ping / 3 * 1e3:.2f} ms with the processors' time\n")
        print_rows(rows)
        _print_layers(layered, times[len(several) :])


def _times(predicted: float, actual: float) -> dict[str, Any]:
    return {
        "predicted ms": f"{predicted * 1e3:.2f}",
        "measured ms": f"{actual * 1e3:.2f}",
        "difference": f"{predicted / actual - 1:+.0%}",
    }


def _print_layers(layered: list[tuple[str, Case, float]], times: list[float]) -> None:
    predicted = [row[2] for row in layered]
    orders = [np.argsort(np.argsort(values)) for values in (predicted, times)]
    rows = [
        {"placement": name, **_times(expected, actual), "place predicted": int(first), "place measured": int(second)}
        for (name, _, expected), actual, first, second in zip(layered, times, *orders, strict=True)
    ]
    print()
    print_rows(rows)
    if len(rows) > 1:
        print(f"\nSpearman's correlation of the places: {np.corrcoef(*orders)[0, 1]:.3f}")


if __name__ == "__main__":
    main()
