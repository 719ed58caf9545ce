"""A program to run under guard_pages.c: compiled models on invalid indices, sizes and counts.

Each call has to end in a result or in an InputError. The program prints each case before it runs, so that the last line
names the case that ended the process.
"""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

import moec
import moec.runtime.program
from moec.common.errors import DefectError, MoecError

from .conftest import parse
from .guarded import LINE, guarded

LEAST, MOST = -(2**63), 2**63 - 1
SIZES = (0, 1, 2, 5)
Feeds = dict[str, np.ndarray]


def rows(count: int, width: int = 16) -> np.ndarray:
    """Rows that fill whole cache lines, so that the place of a further row is on an inaccessible page."""
    return np.arange(count * width, dtype=np.float32).reshape(count, width)


def positions(size: int) -> tuple[int, ...]:
    return (LEAST, -size - 1, -size, -1, 0, 1, size - 1, size, size + 1, 2**40, MOST)


def integers(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def by_position() -> Iterator[Feeds]:
    for size in SIZES:
        for position in positions(size):
            yield {"x": rows(size), "i": np.full((3, 2), position, np.int64), "k": integers(position)[0], "u": rows(3)}


def by_shape() -> Iterator[Feeds]:
    for size, data, width in itertools.product(SIZES, SIZES, (16, 17)):
        yield {"x": rows(data), "i": np.zeros((size, width), np.int64), "u": rows(size, width)}


def two_integers(name: str, lengths: int = 2) -> Iterator[Feeds]:
    for size in SIZES:
        for numbers in itertools.product(positions(size), repeat=2):
            yield {"x": rows(size), name: integers(*numbers, *[0] * (lengths - 2))}


def bounds() -> Iterator[Feeds]:
    for start, limit, step in itertools.product((LEAST, -3, 0, MOST), (LEAST, -3, 7, MOST), (LEAST, -1, 0, 2, MOST)):
        if abs(limit - start) < 99 or (limit > start) != (step > 0):
            yield {"a": integers(start)[0], "b": integers(limit)[0], "c": integers(step)[0]}


def two_tensors() -> Iterator[Feeds]:
    for left, right, width in itertools.product(SIZES, SIZES, (1, 16)):
        yield {"x": rows(left), "w": rows(right, width)}


def caches() -> Iterator[Feeds]:
    for size in (1, 5):
        for position in positions(size):
            cache = rows(2 * size).reshape(2, 1, size, 16)
            update = rows(2).reshape(2, 1, 1, 16)
            yield {"cache": cache, "update": update, "at": np.full(2, position, np.int64), "q": update.copy()}


AXIS = "<int64[1] axis = {0}, int64[1] far = {9223372036854775807}, int64[1] back = {-2}>"
CASES: dict[str, tuple[str, Any]] = {
    "positions": (
        f"""g (float[N,16] x, int64[3,2] i, int64 k, float[3,16] u) => (float[3,2,16] a, float[3,2] b, float[3] c,
        float[N,16] d, float[N,16] e, float[P,16] f, float[R,16] h, float[N,16] l) {AXIS} {{
        a = Gather(x, i) b = GatherElements(x, i) c = GatherND(x, i) one = Unsqueeze(k, axis)
        column = Expand(one, three) indices = Unsqueeze(column, last) d = ScatterND(x, indices, u)
        e = ScatterElements(x, i, b) f = Slice(x, one, far, axis) h = Slice(x, one, one, axis, back) l = Trilu(x, k)
        }}""".replace("int64[1] axis", "int64[1] three = {3}, int64[1] last = {1}, int64[1] axis"),
        by_position,
    ),
    "shapes of indices": (
        "g (float[N,16] x, int64[K,L] i, float[K,L] u) => (float[N,16] a) { a = ScatterElements(x, i, u) }",
        by_shape,
    ),
    "gathered shapes": (
        "g (float[N,16] x, int64[K,L] i, float[K,L] u) => (float[K,L] a) { b = GatherElements(x, i) a = Add(b, u) }",
        by_shape,
    ),
    "Pad": (
        "g (float[N,16] x, int64[4] p) => (float[A,B] y) { y = Pad(x, p) }",
        lambda: two_integers("p", 4),
    ),
    "Pad by the edge": (
        'g (float[N,16] x, int64[4] p) => (float[A,B] y, float[A,B] z) { '
        'y = Pad<mode = "edge">(x, p) z = Pad<mode = "wrap">(x, p) }',
        lambda: (f for f in two_integers("p", 4) if abs(f["p"]).max() < 99),
    ),
    "Reshape": ("g (float[N,16] x, int64[2] s) => (float[A,B] y) { y = Reshape(x, s) }", lambda: two_integers("s")),
    "Split": (
        "g (float[N,16] x, int64[2] s) => (float[A,16] y, float[B,16] z) { y, z = Split(x, s) }",
        lambda: two_integers("s"),
    ),
    "Tile and Expand": (
        "g (float[N,16] x, int64[2] r) => (float[A,B] y) { t = Tile(x, r) s = Shape(t) y = Expand(t, s) }",
        lambda: (f for f in two_integers("r") if abs(f["r"]).max() < 99),
    ),
    "TopK": (
        "g (float[N,16] x, int64[2] s) => (float[A,16] v) <int64[1] z = {0}, int64[1] o = {1}> "
        "{ k = Slice(s, z, o) v, i = TopK<axis = 0>(x, k) }",
        lambda: two_integers("s"),
    ),
    "ConstantOfShape": ("g (float[N,16] x, int64[2] s) => (float[A,B] y) { y = ConstantOfShape(s) }",
                        lambda: (f for f in two_integers("s") if not abs(f["s"]).min() > 99 or f["s"].min() > 99)),
    "Range": ("g (int64 a, int64 b, int64 c) => (int64[N] y) { y = Range(a, b, c) }", bounds),
    "two sizes": (
        "g (float[N,16] x, float[M,W] w) => (float[A,16] y, float[B,16] z) "
        "{ y = Add(x, w) c = Concat<axis = 0>(x, y) z = Mul(c, c) }",
        two_tensors,
    ),
    "a product": (
        "g (float[N,K] x, float[M,L] w) => (float[N,M] y) { t = Transpose(w) y = MatMul(x, t) }",
        two_tensors,
    ),
    "caches": (
        "g (float[2,1,P,16] cache, float[2,1,1,16] update, int64[2] at, float[2,1,1,16] q) => (float[2,1,1,16] y) "
        '{ k = TensorScatter(cache, update, at) y = Attention(q, k, k, "", "", "", at) }',
        caches,
    ),
}  # fmt: skip


def check_guards(model: moec.CompiledModel, feeds: Mapping[str, np.ndarray], front: bool) -> int:
    """The number of tensors of a run that really are next to an inaccessible page."""
    count = 0

    def instrument(_function: Any, _symbol: str, _before: bool, _result: Any, *arguments: Any) -> int:
        nonlocal count
        for tensor in arguments:
            if hasattr(tensor, "data_ptr") and tuple(tensor.shape) == (5, 16):
                end = tensor.data_ptr() + -(-5 * 16 * 4 // LINE) * LINE
                count += (tensor.data_ptr() if front else end) % mmap.PAGESIZE == 0
        return 0

    model._executor.run_instrumented(feeds, instrument)
    return count


def main(front: bool) -> None:
    vars(moec.runtime.program)["_POOLED_ALLOCATOR"] = 1  # allocate each tensor separately, without rounding up to pages
    probe = moec.compile(parse("g (float[N,16] x) => (float[N,16] y) { a = Neg(x) y = Softmax(a) }"), passes="O0")
    assert check_guards(probe, {"x": guarded(rows(5))}, front) >= 2, "tensors are not guarded"
    for name, (text, feeds_of) in CASES.items():
        model = moec.compile(parse(text), passes="O0")
        outcomes = {"ran": 0, "refused": 0}
        for feeds in feeds_of():
            print(name, {key: value.tolist() if value.size < 5 else value.shape for key, value in feeds.items()})
            try:
                model.run({key: guarded(value) for key, value in feeds.items()})
                outcomes["ran"] += 1
            except MoecError as error:
                assert not isinstance(error, DefectError) and "on inputs of sizes" in str(error), error
                outcomes["refused"] += 1
        print("outcomes of", name, outcomes)
        assert outcomes["ran"], name
    print("survived")


if __name__ == "__main__":
    import os

    main("GUARD_FRONT" in os.environ)
