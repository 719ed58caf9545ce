"""Functions that programs with experts on several ranks call between their kernels.

They are the same for all programs of a process. :mod:`moec.runtime.program_run` says with which ranks a program
exchanges rows; without any, it computes all experts itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from moec.common.once import once
from moec.runtime.library import load_ffi
from moec.runtime.program_run import current_run

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
        run = current_run()
        try:
            with run.device.exchanging():
                function(layer, *map(run.device.view_of, tensors))
        except BaseException as error:
            run.keep_error(error)
            raise

    return call


def _send(layer: int, x: np.ndarray, experts: np.ndarray, *weights_and_sent: np.ndarray) -> None:
    *weights, sent = weights_and_sent
    sent[...] = 0
    current_run().ranks.send(layer, x, experts, weights[0] if weights else None)


def _count(layer: int, *tensors: np.ndarray) -> None:
    received = current_run().received[layer] = current_run().ranks.receive(layer)
    tensors[-1][0] = len(received.rows)


def _copy_rows(layer: int, _count: np.ndarray, rows: np.ndarray) -> None:
    rows[...] = current_run().received[layer].rows


def _copy_experts(layer: int, _count: np.ndarray, experts: np.ndarray) -> None:
    experts[:, 0] = current_run().received[layer].experts


def _copy_weights(layer: int, _count: np.ndarray, own: np.ndarray) -> None:
    weights = current_run().received[layer].weights
    assert weights is not None, "weights that were sent are received"
    own[:, 0] = weights


def _return(layer: int, results: np.ndarray, rows: np.ndarray) -> None:
    current_run().received.pop(layer)
    rows[...] = current_run().ranks.give_back(layer, results)
