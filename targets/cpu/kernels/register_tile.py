"""The heart of every matrix product: a block of sums in registers, and how rows are cut into such blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from tvm.script import tirx as T

from moec.targets.cpu.kernels.emit import loop, named, quotient

CACHE_LINE_FLOATS = 16
PREFETCH_DISTANCE = 16
"""How many steps of k ahead a streamed operand is prefetched: about the latency of memory at full speed."""


@dataclasses.dataclass(frozen=True)
class SumsRow:
    """One row of the sums of a register tile; indexed like a buffer, by constants or vector lanes only."""

    buffer: Any
    row: Any

    def __getitem__(self, column: Any) -> Any:
        return self.buffer[self.row, column]

    def store(self, value: Any, column: Any) -> None:
        T.buffer_store(self.buffer, value, [self.row, column])

    def vector(self, position: int, lanes: int) -> Any:
        """The ``position``-th vector of the row."""
        return self.buffer[self.row, T.ramp(position * lanes, 1, lanes)]

    def set_vector(self, value: Any, position: int, lanes: int) -> None:
        T.buffer_store(self.buffer, value, [self.row, T.ramp(position * lanes, 1, lanes)])


class Sums:
    """The sums of a register tile. Their scope keeps TVM from giving them the memory of another buffer: where the
    address of that one is taken, as for matrix tiles, LLVM would store each sum, too."""

    def __init__(self, height: int, width: int, dtype: str = "float32", name: str = "totals") -> None:
        self._height, self._width = height, width
        self._buffer = named(name, T.alloc_buffer((height, width), dtype, scope="local"))

    def fill(self, initial: Callable[[Any, Any], Any]) -> None:
        """Emit ``sums[i][j] = initial(i, j)``."""
        for i, total in self.rows():
            with loop("j", T.vectorized(self._width)) as j:
                total.store(initial(i, j), j)

    def rows(self) -> Iterator[tuple[Any, SumsRow]]:
        """Emit unrolled loops over all rows; what the loop around this generator emits becomes their body."""
        for i, total, _ in self.rows_with(self):
            yield i, total

    def rows_with(self, other: Sums) -> Iterator[tuple[Any, SumsRow, SumsRow]]:
        """The same over the rows of two register tiles of one shape."""
        with loop("i", T.unroll(self._height)) as i:
            yield i, SumsRow(self._buffer, i), SumsRow(other._buffer, i)


def accumulate(
    height: int,
    width: int,
    inner: Any,
    left: Callable[[int, Any], Any],
    right: Callable[[Any, Any], Any],
    *,
    initial: Callable[[Any, Any], Any] = lambda i, j: T.float32(0),
    streamed: bool = False,
) -> Sums:
    """Emit ``sums[i][j] = initial(i, j) + sum over k < inner of left(i, k) * right(k, j)``, k ascending, in float32.

    Returns the sums.

    One rank-1 update per k: ``height`` broadcasts and the vectors of ``width`` columns feed ``height * width``
    multiply-adds (Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008). The sums are a
    buffer on the stack, which LLVM turns into registers as long as it is only indexed by constants.

    ``right`` is prefetched if it is ``streamed`` from memory: the hardware's own prefetcher stops at every page.
    """
    sums = Sums(height, width)
    sums.fill(initial)
    with loop("k", T.serial(inner)) as k:
        for j in range(0, width if streamed else 0, CACHE_LINE_FLOATS):
            prefetch(right(k + PREFETCH_DISTANCE, j))
        for i, total in sums.rows():
            with loop("j", T.vectorized(width)) as j:
                total.store(total[j] + T.cast(left(i, k), "float32") * T.cast(right(k, j), "float32"), j)
    return sums


def clear_rows(sums: Any, count: Any) -> None:
    """Emit zeros for the first ``count`` rows of sums that wait in memory."""
    with loop("r", T.serial(count)) as r, loop("j", T.vectorized(int(sums.shape[1]))) as j:
        T.buffer_store(sums, T.float32(0), [r, j])


def prefetch(element: Any) -> None:
    """Emit: for reading (0), to be kept in all caches (3), data (1). An address behind the buffer is harmless."""
    arguments = T.address_of(element), T.int32(0), T.int32(3), T.int32(1)
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", *arguments))


def emit_row_tiles(rows: Any, tile_rows: int, emit: Callable[..., None], least_tiles: int = 1) -> None:
    """Emit the loop over row tiles of at most ``tile_rows`` rows and nearly equal height, so that no row is computed
    in vain: ``emit(first, height)`` with a dynamic first row and a static height. ``rows`` may be 0, unless the caller
    knows that there are at least ``least_tiles`` tiles: then there is no code for heights that do not occur."""
    least_height = max(1, (tile_rows * (least_tiles - 1) + 1) // least_tiles)
    tiles = named("tiles", T.bind(T.ceildiv(rows, tile_rows)))
    with loop("index", T.serial(tiles)) as index:
        first = named("first", T.bind(quotient(index * rows, tiles)))
        height = named("height", T.bind(quotient((index + 1) * rows, tiles) - first))
        _emit_row_tile(height, range(least_height, tile_rows + 1), lambda static_height: emit(first, static_height))


def _emit_row_tile(height: Any, heights: range, emit: Callable[[int], None]) -> None:
    """Emit a binary choice between the code for each of ``heights``, of which ``height`` is known to be one only when
    the kernel runs."""
    if len(heights) == 1:
        emit(heights[0])
        return
    middle = len(heights) // 2
    with T.If(height < heights[middle]):
        with T.Then():
            _emit_row_tile(height, heights[:middle], emit)
        with T.Else():
            _emit_row_tile(height, heights[middle:], emit)
