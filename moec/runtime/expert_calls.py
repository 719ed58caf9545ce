"""Functions that programs of models larger than memory call between their kernels.

They are the same for all programs of a process. The thread that runs a program says whose experts they refer to.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from moec.common.once import once
from moec.runtime.callback_errors import raised_as
from moec.runtime.library import load_ffi
from moec.runtime.tensors import from_runtime

if TYPE_CHECKING:
    from moec.runtime.streamed_experts import StreamedExperts

EXPERTS_THERE = "moec.experts_there"
"""``(layer, blocks int32 [B, 3], block_count int32 [1], count int32 [1])``: load the experts of the first
``block_count`` blocks, then copy ``block_count`` into ``count``, for which products wait."""
EXPERTS_EXPECTED = "moec.experts_expected"
"""``(layer, x, experts int32 [T, k], y)``: announce the experts of a layer that will probably be selected, and copy x
into y."""
EXPERTS_ABSENT = "moec.experts_absent"
"""``(layer, logits, tolerance float32 [E])``: write, for each expert of a layer that is not in memory, the share of its
weight that may be lost where one in memory takes its place; 0 for the others."""

_running = threading.local()


@contextlib.contextmanager
def streaming(experts: StreamedExperts | None) -> Iterator[None]:
    """Context in which programs that the calling thread runs use these experts; None where all are always in memory."""
    before = getattr(_running, "experts", None), getattr(_running, "error", None)
    _running.experts, _running.error = experts, None
    if experts is not None:
        experts.begin_run()
    try:
        with raised_as(lambda: _running.error):
            yield
    finally:
        _running.experts, _running.error = before


@once
def register_calls() -> None:
    """Register the functions with the runtime."""
    ffi = load_ffi()
    ffi.register_global_func(EXPERTS_THERE, _there)
    ffi.register_global_func(EXPERTS_EXPECTED, _expected)
    ffi.register_global_func(EXPERTS_ABSENT, _absent)


def _there(layer: int, blocks: Any, block_count: Any, count: Any) -> None:
    (used,) = from_runtime(block_count)
    experts: StreamedExperts | None = getattr(_running, "experts", None)
    if experts is not None:
        try:
            experts.need(layer, np.unique(from_runtime(blocks)[:used, 0]).tolist())
        except BaseException as error:  # interruptions, too
            _running.error = error
            raise
    from_runtime(count)[0] = used


def _expected(layer: int, x: Any, ids: Any, y: Any) -> None:
    experts: StreamedExperts | None = getattr(_running, "experts", None)
    if experts is not None:
        # First choices of all tokens come before second ones.
        chosen = from_runtime(ids).T.ravel().tolist()
        experts.expect(layer, [expert for expert in dict.fromkeys(chosen) if expert >= 0])
    from_runtime(y)[...] = from_runtime(x)


def _absent(layer: int, _logits: Any, tolerance: Any) -> None:
    experts: StreamedExperts | None = getattr(_running, "experts", None)
    from_runtime(tolerance)[...] = 0 if experts is None else experts.tolerance(layer)
