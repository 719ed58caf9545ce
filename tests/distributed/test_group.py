"""Ranks start together or not at all, stay in lockstep, and end together."""

from __future__ import annotations

import re
import time
from unittest import mock

import numpy as np
import pytest

from moec.common.errors import LostRankError, MoecError
from moec.distributed.exchange import RowExchange
from moec.distributed.group import RankGroup, joined
from moec.distributed.handshake import ranks_in_words
from moec.distributed.lockstep import Lockstep
from moec.distributed.roll_call import RollVerdict
from moec.placing.placement import ExpertPlacement, linear
from tests.distributed.gloo import FACTS, group_of, start_ranks

TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def uneven_work(rank: int, size: int) -> list[tuple[list[float], int]]:
    """Two groups one after the other, in each of which rank r has 2r pieces of work. Sums, and the idle runs."""
    return [sums_of(rank, size) for _ in range(2)]


def sums_of(rank: int, size: int) -> tuple[list[float], int]:
    idle_runs = 0
    with group_of(size) as group:
        exchange = RowExchange(group, ExpertPlacement(size, (linear("a", 4, size),)), "alltoall")

        def run(value: float) -> float:
            exchange.agreed(1)
            rows, experts = np.full((3, 2), value, np.float32), np.tile(np.arange(4, dtype=np.int32), (3, 1))
            exchange.send(0, rows, experts, None)
            received = exchange.receive(0)
            return float(exchange.give_back(0, received.rows * (received.experts[:, None] + 1)).sum())

        def idle_run(_runs: int) -> None:
            nonlocal idle_runs
            idle_runs += 1
            assert run(np.nan) == 0, "something of a dummy input was computed"

        with Lockstep(exchange, idle_run):
            sums = [run(piece) for piece in range(1, 2 * rank + 1)]
    return sums, idle_runs


def test_ranks_without_work_take_part_until_all_are_done():
    for rank, groups in enumerate(start_ranks(3, uneven_work, 3).results()):
        assert groups == [([60.0 * piece for piece in range(1, 2 * rank + 1)], 4 - 2 * rank)] * 2


def other_facts(rank: int, size: int, names: list[str]) -> None:
    with group_of(size, **{name: f"other{rank % 2}" for name in names if rank}):
        raise AssertionError("was not refused")


@pytest.mark.parametrize("names", [["placement"], ["moec", "artifact"]])
def test_ranks_that_differ_are_refused_on_all_ranks(names):
    ranks = start_ranks(2, other_facts, 2, names)
    assert ranks.codes(30) == [2, 2]
    parts = [f"rank 1 has {name} other1, rank 0 has {FACTS[name]}" for name in FACTS if name in names]
    for rank, text in enumerate(ranks.said()):
        assert text.startswith(f"error: rank {rank} of 2: {'; '.join(parts)}: start all ranks with the same"), text


def one_fails(rank: int, size: int) -> float:
    """Rank 1 fails and goes on; the others wait for it in a collective. Returns how long they did."""
    begin = time.monotonic()
    with pytest.raises(MoecError, match=r"rank 1 of 3: no|rank 1 ended: no"), group_of(size, 30) as group:
        if rank == 1:
            raise MoecError("no")
        group.most(1)
    if rank == 1:
        time.sleep(3)
    return time.monotonic() - begin


def test_an_error_that_a_program_survives_ends_the_others_as_well():
    first, _, last = start_ranks(3, one_fails, 3).results()
    assert max(first, last) < 10


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": ""}, "RANK is ''; expected the environment of torchrun"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE is '-2'"),
        ({"WORLD_SIZE": "4"}, "is for 2 ranks, and 4 were started"),
        ({"MOEC_RANKS_TIMEOUT": "soon"}, "expected a number of seconds above 0"),
        ({"MOEC_RANKS_TIMEOUT": "0"}, "expected a number of seconds above 0"),
    ],
)
def test_another_environment_is_refused(environment, message):
    refused = pytest.raises(MoecError, match=re.escape(message))
    with mock.patch.dict("os.environ", TORCHRUN | environment), refused, joined(2, {}):
        raise AssertionError("was not refused")


def test_torch_errors_become_one_line_without_a_store():
    group = RankGroup(1, 4)
    with (
        pytest.raises(LostRankError, match=r"^rank 1 of 4 \(layer 7, x\): another rank closed its connection \(a b\)$"),
        group.collective("x", 7),
    ):
        raise RuntimeError("a\nb")
    with group.collective("x"):
        pass
    assert group.place == "computing" and group.last_words() is None


@pytest.mark.parametrize(
    ("verdict", "blamed", "word"),
    [
        (RollVerdict((3,), (), "ended"), "rank 3 ended", "rank 3 ended"),
        (RollVerdict(failed=2, message="no"), "rank 2 ended: no", "rank 2 ended: no"),
        (RollVerdict(how="ended", unreachable=True), "rank 0, which holds the store, ended", "rank 0, which"),
        (RollVerdict((), (2, 3), "did not answer within 9 s"), "ranks 2, 3 computed for more than 9 s: set", None),
        (RollVerdict((), (), "did not answer within 9 s"), "ranks waited for 9 s: set", None),
        (RollVerdict((), (), "closed its connection"), "all ranks are there, but the connection failed: reset", None),
    ],
)
def test_verdicts_in_words(verdict, blamed, word):
    group = RankGroup(1, 4, 9)
    group.roll = mock.Mock(call=lambda how, **_: verdict)
    with pytest.raises(LostRankError, match=re.escape(f"rank 1 of 4 (x): {blamed}")), group.collective("x"):
        raise RuntimeError("reset. This is typically caused by a remote worker")
    said = group.last_words()
    assert (said is None) == (word is None) and (word is None or word in said)


@pytest.mark.parametrize(("ranks", "words"), [([3], "rank 3"), ((1, 3), "ranks 1, 3")])
def test_ranks_in_words(ranks, words):
    assert ranks_in_words(ranks) == words
