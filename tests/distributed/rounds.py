"""Ranks that exchange rows round after round, until one of them meets a fault."""

from __future__ import annotations

import os
import pathlib
import signal
import time
from collections.abc import Callable

import numpy as np

from moec.common.errors import MoecError
from moec.distributed.exchange import RowExchange
from moec.distributed.lockstep import Lockstep
from moec.placing.placement import ExpertPlacement, linear
from moec.placing.volume import Transport
from tests.distributed.gloo import group_of

TIMEOUT = 4.0


def run_rounds(
    rank: int,
    size: int,
    transport: Transport,
    fault: str = "",
    begun: str = "",
    rounds: int = 1_000_000,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Exchange rows of three layers again and again. ``fault``: rank 1's in its third round, when the others do
    something ``meanwhile``. ``begun``: a file to write after the first round."""
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
                if layer == 1 and count == 3:
                    meanwhile()
                    if rank == 1:
                        fail(fault)
                exchange.give_back(layer, exchange.receive(layer).rows)

        with Lockstep(exchange, lambda _runs: run()):
            for _ in range(rounds):
                exchange.agreed(1)
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
