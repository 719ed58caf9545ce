"""Sessions of ranks: long prompts run as two halves in turn, with the bits of one process."""

from __future__ import annotations

import os
import pathlib
import re
import signal
from unittest import mock

import numpy as np
import pytest

import moec
from moec.common.errors import MoecError
from moec.distributed.model import RankedModel
from moec.distributed.pair import ProgramPair
from moec.distributed.start import loaded
from moec.runtime.model import CompiledModel
from tests.distributed.gloo import start_ranks
from tests.pipelined_model import pipelined_model

LENGTHS = [[700, 1, 512, 511, 4], [3, 600], []]
"""New tokens of the runs of each rank's session."""


@pytest.fixture(scope="module")
def placed(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("sessions") / "placed"
    moec.compile(pipelined_model(), ranks=3).save(path)
    return path


def logits(model: CompiledModel, rank: int) -> list[np.ndarray]:
    """Run one session, in the middle of which a copy continues from the same tokens."""
    random, session = np.random.default_rng(rank), model.session()
    results = []
    for count in LENGTHS[rank]:
        ids = random.integers(0, 9, count)
        results.append(session.run(ids, last=3))
        fork = session.fork()
        results.append(fork.run(ids[:2]))
        fork.truncate(1)
        results.append(fork.run(ids[:2]))
    return results


def on_a_rank(rank: int, path: pathlib.Path, threads: int) -> tuple[list[np.ndarray], int]:
    pairs = mock.Mock(side_effect=ProgramPair.in_turn)
    with (
        loaded(path, threads=threads) as model,
        mock.patch.object(ProgramPair, "in_turn", lambda *works: pairs(*works)),
        mock.patch.object(ProgramPair, "pays", True),
    ):
        assert isinstance(model, RankedModel)
        with model.apart():
            results = logits(model, rank)
        return results, pairs.call_count


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_long_prompts_run_in_halves_with_the_same_results(placed, threads):
    alone = moec.load(placed, threads=threads)
    assert alone.session().is_incremental
    for rank, (actual, pairs) in enumerate(start_ranks(3, on_a_rank, placed, threads).results()):
        expected = logits(alone, rank)
        assert len(actual) == len(expected) and all(map(np.array_equal, actual, expected))
        assert pairs == 3, "two prompts of rank 0 and one of rank 1 are long; 511 tokens are not"


@pytest.mark.parametrize(
    ("runs", "pays"),
    [
        ([], False),
        ([(512, True)], False),
        ([(512, True), (512, True)], True),
        ([(511, True), (511, True)], False),
        ([(512, True), (512, False)], False),
        ([(512, False), (512, True), (512, True)], True),
        ([(512, True), (512, True), (2, False)], True),
    ],
)
def test_halves_pay_where_the_last_long_runs_waited(runs, pays):
    pair = ProgramPair(mock.Mock(), mock.Mock())

    def run(waits: bool) -> int:
        pair.exchange.waited += 1.0 if waits else 0.0
        return 7

    assert [pair.whole(lambda waits=waits: run(waits), tokens) for tokens, waits in runs] == [7] * len(runs)
    assert pair.pays is pays


def lost_in_a_half(rank: int, path: pathlib.Path, place: int) -> None:
    """Let rank 1 die in the second run of a pair, when it has sent rows: of its own, or none for ``place`` 0."""
    with loaded(path, threads=1) as model, mock.patch.object(ProgramPair, "pays", True):
        assert isinstance(model, RankedModel)
        if rank == 1:
            model._pair.second_exchange.meanwhile = lambda: os.kill(os.getpid(), signal.SIGKILL)
        with model.apart():
            logits(model, rank if place else 2 * (rank == 1))


@pytest.mark.nightly
@pytest.mark.parametrize("place", [0, 1])
def test_a_rank_that_dies_in_a_half_ends_the_others(placed, place):
    ranks = start_ranks(3, lost_in_a_half, placed, place)
    assert ranks.codes(60) == [2, -signal.SIGKILL, 2]
    for survivor in (0, 2):
        line = rf"error: rank {survivor} of 3 \(layer 0, \w+ of rows\): rank 1 closed its connection\n"
        assert re.fullmatch(line, ranks.said()[survivor])


@pytest.mark.nightly
def test_an_error_in_the_second_half_is_that_of_the_rank(placed):
    ranks = start_ranks(3, failing_in_a_half, placed)
    assert ranks.codes(60) == [2, 2, 2]
    assert ranks.said()[1] == "error: rank 1 of 3: no more\n"
    for survivor in (0, 2):
        assert ranks.said()[survivor].endswith(": rank 1 ended: no more\n")


def failing_in_a_half(rank: int, path: pathlib.Path) -> None:
    def fail() -> None:
        raise MoecError("no more")

    with loaded(path, threads=1) as model, mock.patch.object(ProgramPair, "pays", True):
        assert isinstance(model, RankedModel)
        if rank == 1:
            model._pair.second_exchange.meanwhile = fail
        with model.apart():
            logits(model, rank)
