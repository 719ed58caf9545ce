"""A rank that is killed, stops, fails or differs ends all others in time, each with one line that says who it was."""

from __future__ import annotations

import os
import pathlib
import random
import re
import signal
import time

import numpy as np
import pytest

from moec.common.errors import MoecError
from moec.distributed.exchange import RowExchange
from moec.distributed.lockstep import Lockstep
from moec.placing.placement import ExpertPlacement, linear
from moec.placing.volume import TRANSPORTS, Transport
from tests.distributed.gloo import group_of, start_ranks

TIMEOUT = 4.0


def run_forever(rank: int, size: int, transport: Transport, fault: str = "", begun: str = "") -> None:
    """Exchange rows of three layers again and again. ``fault``: rank 1's in its third run. ``begun``: a file to write
    after the first."""
    placement = ExpertPlacement(size, tuple(linear(str(layer), 6, size) for layer in range(3)))
    generator = np.random.default_rng(rank)
    with group_of(size, TIMEOUT) as group:
        count = 0
        exchange = RowExchange(group, placement, transport)

        def run() -> None:
            nonlocal count
            count += 1
            tokens = int(generator.integers(0, 300))
            for layer in range(3):
                rows, experts = np.ones((tokens, 40), np.float32), generator.integers(-1, 6, (tokens, 2))
                exchange.send(layer, rows, experts.astype(np.int32), None)
                if fault and layer == 1 and count == 3 and rank == 1:
                    fail(fault)
                exchange.give_back(layer, exchange.receive(layer).rows)

        with Lockstep(exchange, run):
            while True:
                exchange.begin_run()
                run()
                if begun and count == 1:
                    pathlib.Path(begun).touch()


def fail(fault: str) -> None:
    if fault == "bad input":
        raise MoecError("prompts.txt: is empty;\n expected a prompt")
    if fault == "defect":
        raise ZeroDivisionError("a defect")
    if fault == "memory":
        np.empty(1 << 60, np.uint8)
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "slow":
        time.sleep(TIMEOUT + 3)
    if fault == "exit":
        os._exit(0)


def lines(ranks, survivors: list[int], seconds: float) -> list[str]:
    """The lines of surviving ranks, which end in a time, each with exit code 2 and one line."""
    try:
        assert set(ranks.codes(seconds, survivors)) == {2}, ranks.said()
        said = [ranks.said()[rank] for rank in survivors]
    finally:
        ranks.kill()
    for rank, text in zip(survivors, said, strict=True):
        assert re.fullmatch(rf"error: rank {rank} of \d \(.*\): .*\n", text), text
    return said


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("bad input", "rank 1 ended: prompts.txt: is empty; expected a prompt"),
        ("memory", "rank 1 ended: Unable to allocate"),
        ("kill", "rank 1 closed its connection"),
        ("stop", "rank 1 did not answer within 4 s"),
        ("slow", "rank 1 computed for more than 4 s"),
        ("exit", "rank 1 closed its connection"),
    ],
)
def test_all_others_say_what_happened(fault, expected):
    ranks = start_ranks(3, run_forever, 3, "alltoall", fault)
    for line in lines(ranks, [0, 2], TIMEOUT + 25):
        assert expected in line
        assert re.search(r"\(layer 1, (dispatch|return) of rows\)", line)


def lost_at_random(seed: int, begun: pathlib.Path) -> list[str]:
    """Kill or stop a rank at a random moment: of its start, where the seed is a multiple of 4, or of its runs."""
    generator = random.Random(seed)
    size = generator.choice([2, 3, 4])
    ranks = start_ranks(size, run_forever, size, generator.choice(TRANSPORTS), "", str(begun))
    victim, number = generator.randrange(size), generator.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP])
    end = time.monotonic() + 60
    while seed % 4 and not begun.exists() and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(generator.uniform(0, 1))
    os.kill(ranks.processes[victim].pid, number)
    said = lines(ranks, [rank for rank in range(size) if rank != victim], TIMEOUT + 5)
    if seed % 4:
        how = "did not answer within 4 s" if number == signal.SIGSTOP else "closed its connection"
        assert all(re.search(f"rank {victim}(, which holds the store,)? {how}", line) for line in said), said
    return said


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(3, 100))]
)
def test_a_rank_lost_at_any_moment_ends_the_others(seed, tmp_path):
    lost_at_random(seed, tmp_path / "begun")
