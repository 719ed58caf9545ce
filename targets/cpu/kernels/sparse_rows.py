"""Products of rows with many zeros, as relu makes them: list the nonzero inputs and read only their weights.

For few rows, a product takes the time of reading its weights. So it scans its rows first: where less than
1 / :data:`GAIN` of the inputs is nonzero in any row of the block, it follows the list, else it takes all inputs. A zero
input adds a zero to a sum, and a sum begins with zero, so both ways give the same bits as long as no weight is infinite
or NaN; a NaN among the inputs is listed. (Matrix tiles sum in another order: where their crossover is at
:data:`MOST_ROWS` rows or fewer, the way may change the last bits. The number of threads never does.) The list is made
anew for every tile of columns; it compresses a vector register per step and costs a few percent of what it saves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tvm.script import tirx as T

from moec.targets.cpu.kernels.dot import pair_dot, pair_words
from moec.targets.cpu.kernels.emit import loop, named
from moec.targets.cpu.kernels.multiplication import Multiplication, Rows, Weights, WeightTile
from moec.targets.cpu.kernels.register_tile import Sums, prefetch

MOST_ROWS = 4
"""Most rows that are listed: few inputs are zero in all of more rows."""
GAIN = 2
"""Factor by which reading weights by a list is slower than reading them in order."""
_AHEAD = 16
"""Distance of prefetching, in entries of the list."""
_LINE = 64
_NOT_SIGNS = {"float32": 0x7FFFFFFF, "bfloat16": 0x7FFF7FFF}
"""The bits of a word of a row (a float32, or two bfloat16) that are all 0 where it is zero."""


def emit(
    product: Multiplication,
    rows: Rows,
    weights: Weights,
    tile: WeightTile,
    sums: Any,
    first: Any,
    count: Any,
    *,
    otherwise: Callable[[], None],
) -> None:
    """Emit ``sums[r] = rows[first + r] @ tile`` for r below ``count``: by a list where that is faster, else by
    ``otherwise``, which emits the product over all inputs."""
    words = tile.inner // (2 if product.arithmetic == "bfloat16" else 1)
    places = named("places", T.alloc_buffer((int(rows.values.shape[1]) + product.machine.lanes + _AHEAD,), "int32"))
    listed = named("listed", T.alloc_buffer((1,), "int32"))
    T.buffer_store(listed, T.cast(words, "int32"), [0])
    for height in _heights(count):
        _list_nonzero(product, rows, first, height, words, places, listed)
    with T.If(T.cast(listed[0], "int64") * GAIN < words):
        with T.Then():
            for height in _heights(count):
                _multiply_listed(product, rows, weights, tile, sums, first, height, places, listed)
        with T.Else():
            otherwise()


def _heights(count: Any) -> Iterator[int]:
    """Heights 1 to :data:`MOST_ROWS`; the code emitted for each runs only where ``count`` is this height."""
    for height in range(1, MOST_ROWS + 1):
        with T.If(count == height), T.Then():
            yield height


def _list_nonzero(
    product: Multiplication, rows: Rows, first: Any, height: int, words: Any, places: Any, listed: Any
) -> None:
    """Emit ``places[0 : listed]`` = the numbers of the words that are not zero in all rows, ascending."""
    lanes = product.machine.lanes if "avx512f" in product.machine.features else 1
    T.buffer_store(listed, T.int32(0), [0])
    with loop("step", T.serial(words // lanes)) as step:
        word = named("word", T.bind(step * lanes))
        nonzero = _nonzero(product, rows, first, height, word, lanes)
        _append(places, listed, word, nonzero, lanes)
    if lanes > 1:
        with loop("rest", T.serial(words % lanes)) as rest:
            word = named("word", T.bind(words // lanes * lanes + rest))
            _append(places, listed, word, _nonzero(product, rows, first, height, word, 1), 1)
    with loop("i", T.serial(_AHEAD)) as i:
        T.buffer_store(places, T.int32(0), [listed[0] + T.cast(i, "int32")])


def _nonzero(product: Multiplication, rows: Rows, first: Any, height: int, word: Any, lanes: int) -> Any:
    """Vector of bools: whether each of the ``lanes`` words from ``word`` on is nonzero in any row; -0 is zero."""
    together = _row_words(product, rows, first, word, lanes)
    for row in range(1, height):
        together = together | _row_words(product, rows, first + row, word, lanes)
    mask = T.int32(_NOT_SIGNS[product.arithmetic])
    return (together & _all_lanes(mask, lanes)) != _all_lanes(T.int32(0), lanes)


def _row_words(product: Multiplication, rows: Rows, row: Any, word: Any, lanes: int) -> Any:
    if product.arithmetic == "bfloat16":
        return pair_words(rows.values, [row, 2 * word], lanes)
    if lanes == 1:
        return T.reinterpret("int32", rows.values[row, word])
    return T.reinterpret(f"int32x{lanes}", rows.values[row, T.ramp(word, 1, lanes)])


def _append(places: Any, listed: Any, word: Any, nonzero: Any, lanes: int) -> None:
    """Emit appending the nonzero words to the list, without a branch, which could not be predicted.

    An entry that is not nonzero is stored after the end, where the next one overwrites it."""
    number = T.cast(word, "int32")
    if lanes == 1:
        T.buffer_store(places, number, [listed[0]])
        T.buffer_store(listed, listed[0] + T.Select(nonzero, T.int32(1), T.int32(0)), [0])
        return
    numbers, vector = T.ramp(number, 1, lanes), f"int32x{lanes}"
    zeros, ones = (T.broadcast(T.int32(value), lanes) for value in (0, 1))
    kept = T.call_llvm_pure_intrin(vector, "llvm.x86.avx512.mask.compress", numbers, zeros, nonzero)
    T.buffer_store(places, kept, [T.ramp(listed[0], 1, lanes)])
    count = T.call_llvm_pure_intrin("int32", "llvm.vector.reduce.add", T.Select(nonzero, ones, zeros))
    T.buffer_store(listed, listed[0] + count, [0])


def _multiply_listed(
    product: Multiplication,
    rows: Rows,
    weights: Weights,
    tile: WeightTile,
    sums: Any,
    first: Any,
    height: int,
    places: Any,
    listed: Any,
) -> None:
    add = _add_pair if product.arithmetic == "bfloat16" else _add_input
    totals = Sums(height, product.columns)
    totals.fill(lambda i, j: T.float32(0))
    with loop("i", T.serial(T.cast(listed[0], "int64"))) as i:
        ahead = _start(product, tile, T.cast(places[i + _AHEAD], "int64"))
        step_bytes = product.columns * product.stored.bits // 8 * product.stored.step
        for line in range(0, step_bytes, _LINE):
            prefetch(weights.data[ahead + line * 8 // product.stored.bits])
        word = named("word", T.bind(T.cast(places[i], "int64")))
        add(product, rows, weights, _start(product, tile, word), word, first, totals)
    for i, total in totals.rows():
        with loop("j", T.vectorized(product.columns)) as j:
            T.buffer_store(sums, total[j], [i, j])


def _start(product: Multiplication, tile: WeightTile, word: Any) -> Any:
    """Start of the weights of a word; for weights stored in pairs, that of the pair, also if rows are float32."""
    if product.stored.step == 1:
        return T.bind(tile.data + word * product.columns)
    pair = word if product.arithmetic == "bfloat16" else word // 2
    return T.bind(tile.data + pair * (2 * product.columns))


def _add_input(
    product: Multiplication, rows: Rows, weights: Weights, start: Any, word: Any, first: Any, totals: Sums
) -> None:
    """Emit ``totals[r] += rows[r, word] * the word's weights``, the weights widened to float32."""
    lanes = product.machine.lanes
    vectors = [T.bind(_floats(product, weights, start, word, v)) for v in range(product.vectors)]
    for i, total in totals.rows():
        left = T.broadcast(rows.values[first + i, word], lanes)
        for v, vector in enumerate(vectors):
            total.set_vector(total.vector(v, lanes) + left * vector, v, lanes)


def _floats(product: Multiplication, weights: Weights, start: Any, word: Any, v: int) -> Any:
    """The ``v``-th vector of one input's weights, as float32.

    In a pair of bfloat16 the even input is the lower half of a word. A bfloat16 is the upper half of a float32."""
    lanes = product.machine.lanes
    if product.stored.step == 1:
        return T.cast(weights.data[T.ramp(start + v * lanes, 1, lanes)], f"float32x{lanes}")
    pairs = pair_words(weights.data, [start + 2 * v * lanes], lanes)
    shift = T.cast(16 * (1 - word % 2), "int32")
    upper = _all_lanes(T.int32(-65536), lanes)
    return T.reinterpret(f"float32x{lanes}", (pairs << _all_lanes(shift, lanes)) & upper)


def _add_pair(
    product: Multiplication, rows: Rows, weights: Weights, start: Any, word: Any, first: Any, totals: Sums
) -> None:
    """Emit ``totals[r] += rows[r, pair] . weights`` for the two bfloat16 inputs of a word."""
    lanes, dot = product.machine.lanes, pair_dot(product.machine)
    vectors = [T.bind(pair_words(weights.data, [start + 2 * v * lanes], lanes)) for v in range(product.vectors)]
    for i, total in totals.rows():
        left = named("left", T.bind(T.broadcast(pair_words(rows.values, [first + i, 2 * word], 1), lanes)))
        for v, vector in enumerate(vectors):
            total.set_vector(dot(total.vector(v, lanes), vector, left), v, lanes)


def _all_lanes(number: Any, lanes: int) -> Any:
    return number if lanes == 1 else T.broadcast(number, lanes)
