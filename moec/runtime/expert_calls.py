"""Functions that programs of models larger than memory call between their kernels.

They are the same for all programs of a process; :mod:`moec.runtime.program_run` says whose weights they refer to.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from moec.common.once import once
from moec.runtime.library import load_ffi
from moec.runtime.program_run import current_run
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
TABLE_ROWS = "moec.table_rows"
"""``(table [N, ...], ids, rows [..., ...])``: copy the rows of a table that have these numbers, from memory or the
file. Negative numbers count from the end, and those out of range are clamped, as in every look-up of a program."""


@once
def register_calls() -> None:
    """Register the functions with the runtime."""
    ffi = load_ffi()
    ffi.register_global_func(EXPERTS_THERE, _there)
    ffi.register_global_func(EXPERTS_EXPECTED, _expected)
    ffi.register_global_func(EXPERTS_ABSENT, _absent)
    ffi.register_global_func(TABLE_ROWS, _table_rows)


def _experts() -> StreamedExperts | None:
    streamed = current_run().streamed
    return None if streamed is None else streamed.experts


def _there(layer: int, blocks: Any, block_count: Any, count: Any) -> None:
    (used,) = from_runtime(block_count)
    experts = _experts()
    if experts is not None:
        try:
            experts.need(layer, np.unique(from_runtime(blocks)[:used, 0]).tolist())
        except BaseException as error:
            current_run().keep_error(error)
            raise
    from_runtime(count)[0] = used


def _expected(layer: int, x: Any, ids: Any, y: Any) -> None:
    experts = _experts()
    if experts is not None:
        # First choices of all tokens come before second ones.
        chosen = from_runtime(ids).T.ravel().tolist()
        experts.expect(layer, [expert for expert in dict.fromkeys(chosen) if expert >= 0])
    from_runtime(y)[...] = from_runtime(x)


def _absent(layer: int, _logits: Any, tolerance: Any) -> None:
    experts = _experts()
    from_runtime(tolerance)[...] = 0 if experts is None else experts.tolerance(layer)


def _table_rows(table: Any, ids: Any, rows: Any) -> None:
    count, size = math.prod(ids.shape), table.shape[0]
    if not math.prod(rows.shape):
        return
    places = from_runtime(ids).reshape(count).astype(np.int64)
    places = np.where(places < 0, places + size, places).clip(0, size - 1)
    copies = from_runtime(rows).reshape(-1).view(np.uint8).reshape(count, -1)
    streamed = current_run().streamed
    tables = None if streamed is None else streamed.tables
    try:
        if tables is None or not tables.read(table.data_ptr(), places, copies):
            stored = from_runtime(table).reshape(-1).view(np.uint8).reshape(size, -1)
            np.take(stored, places, axis=0, out=copies, mode="clip")
    except BaseException as error:
        current_run().keep_error(error)
        raise
