"""Functions that programs with experts on several ranks call between their kernels.

They are the same for all programs of a process. The thread that runs a program says with which ranks it exchanges rows;
without any, the program computes all experts itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from moec.common.errors import MoecError, RoomError
from moec.common.once import once
from moec.runtime.callback_errors import raised_as
from moec.runtime.library import load_ffi
from moec.runtime.ranks import OneRank, Ranks, ReceivedRows

SEND_ROWS = "moec.send_rows"
"""``(layer, x [T,d], experts int32 [T,k], weights? [T,k], sent int32 [1])``: begin to send rows."""
COUNT_ROWS = "moec.count_rows"
"""``(layer, sent, x, experts, weights?, count int64 [1])``: wait for the rows of all ranks, and count them."""
RECEIVED_ROWS = "moec.received_rows"
"""``(layer, count, rows [P,d])``: copy the rows that this rank computes."""
RECEIVED_EXPERTS = "moec.received_experts"
"""``(layer, count, experts int32 [P,1])``: copy the experts of these rows."""
RECEIVED_WEIGHTS = "moec.received_weights"
"""``(layer, count, weights [P,1])``: copy the routing weights of these rows."""
RETURN_ROWS = "moec.return_rows"
"""``(layer, results [P,n], rows [T*k,n])``: return results, and wait for those of this rank's pairs."""


class RowsDevice(Protocol):
    """The part of :class:`moec.runtime.device.Device` that these functions need."""

    def view_of(self, tensor: Any) -> Any:
        """View a tensor of the program, for the exchange of its rows."""
        ...

    def exchanging(self) -> contextlib.AbstractContextManager[None]:
        """Context in which such views are used."""
        ...


@dataclasses.dataclass
class _ProgramRun:
    """One run of a program: its ranks, the rows that it received by layer, and the error that ended it."""

    ranks: Ranks
    device: RowsDevice
    received: dict[int, ReceivedRows] = dataclasses.field(default_factory=dict)
    error: BaseException | None = None


class _Running(threading.local):
    turn: _ProgramRun | None = None


_running = _Running()


def _turn() -> _ProgramRun:
    assert _running.turn is not None, "a program runs"
    return _running.turn


@contextlib.contextmanager
def exchanging(ranks: Ranks, device: RowsDevice) -> Iterator[None]:
    """Context of a run of a program on a device in the calling thread, which exchanges rows with these ranks. An error
    of the exchange is raised as it was. On several ranks RoomError becomes MoecError: a rank alone cannot run fewer
    tokens."""
    before, turn = _running.turn, _ProgramRun(ranks, device)
    _running.turn = turn
    try:
        ranks.begin_run()
        with raised_as(lambda: turn.error):
            yield
    except RoomError as error:
        if isinstance(ranks, OneRank):
            raise
        raise MoecError(str(error)) from error
    finally:
        _running.turn = before


@once
def register_rank_calls() -> None:
    """Register the functions with the runtime."""
    ffi = load_ffi()
    for name, function in (
        (SEND_ROWS, _send),
        (COUNT_ROWS, _count),
        (RECEIVED_ROWS, _copy_rows),
        (RECEIVED_EXPERTS, _copy_experts),
        (RECEIVED_WEIGHTS, _copy_weights),
        (RETURN_ROWS, _return),
    ):
        ffi.register_global_func(name, _keeping_errors(function))


def _keeping_errors(function: Callable[..., None]) -> Callable[..., None]:
    def call(layer: int, *tensors: Any) -> None:
        turn = _turn()
        try:
            with turn.device.exchanging():
                function(layer, *map(turn.device.view_of, tensors))
        except BaseException as error:  # interruptions, too
            turn.error = error
            raise

    return call


def _send(layer: int, x: np.ndarray, experts: np.ndarray, *weights_and_sent: np.ndarray) -> None:
    *weights, sent = weights_and_sent
    sent[...] = 0
    _turn().ranks.send(layer, x, experts, weights[0] if weights else None)


def _count(layer: int, *tensors: np.ndarray) -> None:
    received = _turn().received[layer] = _turn().ranks.receive(layer)
    tensors[-1][0] = len(received.rows)


def _copy_rows(layer: int, _count: np.ndarray, rows: np.ndarray) -> None:
    rows[...] = _turn().received[layer].rows


def _copy_experts(layer: int, _count: np.ndarray, experts: np.ndarray) -> None:
    experts[:, 0] = _turn().received[layer].experts


def _copy_weights(layer: int, _count: np.ndarray, own: np.ndarray) -> None:
    weights = _turn().received[layer].weights
    assert weights is not None, "weights that were sent are received"
    own[:, 0] = weights


def _return(layer: int, results: np.ndarray, rows: np.ndarray) -> None:
    _turn().received.pop(layer)
    rows[...] = _turn().ranks.give_back(layer, results)
