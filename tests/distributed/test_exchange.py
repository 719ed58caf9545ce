"""Rows reach the ranks that compute them, results come back as one rank has them, and bytes are those expected."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from moec.distributed.exchange import RowExchange
from moec.placing import volume
from moec.placing.placement import ExpertPlacement, LayerPlacement, linear
from moec.placing.volume import COUNT_BYTES, TRANSPORTS, RowBytes, Sent, Transport, bytes_sent
from moec.runtime.ranks import OneRank, Ranks
from tests.distributed.gloo import group_of, start_ranks

EXPERTS = 6
LAYERS = ("linear", "replicas", "one rank")


@dataclasses.dataclass(frozen=True)
class Case:
    """Tokens of each rank in turn, experts per token, and types; ``choice``: how ids are drawn."""

    tokens: tuple[int, ...]
    k: int = 2
    d: int = 5
    dtype: str = "float32"
    weights: str | None = None
    choice: str = "any"


CASES = {
    "even": Case((3,)),
    "uneven": Case((0, 64, 1, 257), k=3),
    "one token": Case((1, 0)),
    "no token": Case((0,)),
    "one expert": Case((5, 2), choice="one"),
    "own ids": Case((7, 9), choice="beyond"),
    "nothing": Case((4, 3), choice="none"),
    "k=1, float16": Case((9, 8), k=1, dtype="float16", weights="float32"),
    "bfloat16": Case((9, 4), dtype="bfloat16", weights="bfloat16"),
    "odd rows of bytes": Case((3, 2), d=3, dtype="float8_e4m3fn", weights="float32"),
    "float64": Case((6, 5), dtype="float64", weights="float64"),
    "one column": Case((6, 5), d=1),
}


def dtype_of(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


def placement_of(ranks: int, nodes: int) -> ExpertPlacement:
    everything = tuple(range(EXPERTS))
    replicas = tuple(tuple(sorted({rank % EXPERTS, 1, *range(rank % 2, EXPERTS, 2)})) for rank in range(ranks))
    lonely = ((), *((),) * (ranks - 2), everything)
    layers = (linear("a", EXPERTS, ranks), LayerPlacement("b", EXPERTS, replicas), LayerPlacement("c", EXPERTS, lonely))
    return ExpertPlacement(ranks, layers, nodes)


def inputs_of(case: Case, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    generator = np.random.default_rng([rank, *case.tokens])
    tokens = case.tokens[rank % len(case.tokens)]
    rows = generator.standard_normal((tokens, case.d)).astype(dtype_of(case.dtype))
    low, high = {"any": (-1, EXPERTS), "one": (4, 5), "beyond": (-1, EXPERTS + 3), "none": (-1, 0)}[case.choice]
    experts = generator.integers(low, high, (tokens, case.k)).astype(np.int32)
    weights = None if case.weights is None else generator.random((tokens, case.k)).astype(dtype_of(case.weights))
    return rows, experts, weights


def computed(ranks: Ranks, layer: int, rows: Any, experts: Any, weights: Any, own: Any = None) -> np.ndarray:
    """A layer whose experts scale rows, and append their weight. ``own``: whether this rank may compute an expert."""
    ranks.send(layer, rows, experts, weights)
    received = ranks.receive(layer)
    assert received.rows.dtype == rows.dtype and received.experts.dtype == np.int32
    assert own is None or all(own(expert) for expert in received.experts), "an expert that another rank holds"
    last = np.zeros(len(received.rows)) if received.weights is None else received.weights.astype(np.float64)
    products = received.rows.astype(np.float64) * (received.experts[:, None] + 1)
    return ranks.give_back(layer, np.concatenate([products, last[:, None]], axis=1).astype(np.float32))


def predicted(placed: LayerPlacement, nodes: int, case: Case, size: int, transport: Transport) -> Sent:
    of_weights = 0 if case.weights is None else dtype_of(case.weights).itemsize
    out = case.d * dtype_of(case.dtype).itemsize + case.k * (4 + of_weights)
    experts = [inputs_of(case, source)[1] for source in range(size)]
    return bytes_sent(volume.exchange(placed, experts, nodes), RowBytes(out, 4 * (case.d + 1), COUNT_BYTES), transport)


def outcome(exchange: RowExchange, placement: ExpertPlacement, layer: int, case: Case, transport: Transport) -> str:
    """Say in words what is wrong with a case on this rank, if anything is."""
    rank, size = exchange.group.rank, exchange.group.size
    placed = placement.layers[layer]
    before = dataclasses.astuple(exchange.traffic[layer])
    inputs = inputs_of(case, rank)
    found = computed(exchange, layer, *inputs, lambda expert: expert in placed.slots[rank] or expert >= EXPERTS)
    if found.tobytes() != computed(OneRank(), layer, *inputs).tobytes():
        return f"rank {rank}: other results than one rank's"
    sent = [after - old for after, old in zip(dataclasses.astuple(exchange.traffic[layer]), before, strict=True)]
    sums = predicted(placed, placement.nodes, case, size, transport)
    expected = [int(sums.out[rank].sum()), int(sums.back[rank].sum())]
    return "" if sent == expected else f"rank {rank}: sent {sent} bytes, expected {expected}"


def all_cases(rank: int, size: int, nodes: int) -> dict[tuple[str, str, str], str]:
    placement = placement_of(size, nodes)
    results = {}
    with group_of(size) as group:
        for transport in TRANSPORTS:
            exchange = RowExchange(group, placement, transport)
            for layer, (name, case) in itertools.product(range(len(LAYERS)), CASES.items()):
                results[transport, LAYERS[layer], name] = outcome(exchange, placement, layer, case, transport)
            results[transport, "idle"] = idle(exchange)
    return results


def idle(exchange: RowExchange) -> str:
    """Rank 0 runs on a dummy input, and computes for the others."""
    rank = exchange.group.rank
    inputs = inputs_of(Case((5, 3)), rank)
    before = exchange.traffic[2].out
    if rank:
        found = computed(exchange, 2, *inputs)
        return "" if found.tobytes() == computed(OneRank(), 2, *inputs).tobytes() else f"rank {rank}: other results"
    with exchange.idle():
        found = computed(exchange, 2, *inputs)
    rows = exchange.traffic[2].out - before - 8 * (exchange.group.size - 1)
    return "" if found.shape == (10, 6) and not found.any() and not rows else "an idle rank sent rows"


@pytest.fixture(scope="module", params=[2, pytest.param(4), pytest.param(8, marks=pytest.mark.nightly)])
def outcomes(request):
    nodes = 2 if request.param == 4 else 1
    return start_ranks(request.param, all_cases, request.param, nodes).results()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_results_and_bytes_are_those_expected(outcomes, transport):
    wrong = {key: said for ranks in outcomes for key, said in ranks.items() if said and key[0] == transport}
    assert not wrong
    assert len(outcomes[0]) == 2 * (len(LAYERS) * len(CASES) + 1)
