"""Quotients of numbers that are not negative are the machine's own, and only those."""

from __future__ import annotations

import pytest
import tvm
from tvm import tirx
from tvm.script import tirx as T

from moec.targets.gpu.lowering.natural_division import DivideNaturalNumbers


def divided(index: str) -> str:
    """The index of the only store after the pass; ``i`` and ``j`` are variables of loops, n is a size."""

    @T.prim_func(s_tir=True)
    def kernel(x_handle: T.handle, offset: T.int64):
        n = T.int64()
        x = T.match_buffer(x_handle, (n,), "float32")
        for i in T.serial(n):
            for j in T.serial(offset, n):
                x[i + j + offset] = T.float32(0)

    outer = kernel.body
    names = {"i": outer.loop_var, "j": outer.body.loop_var, "n": outer.extent, "offset": kernel.params[1]}
    store = outer.body.body
    changed = tirx.BufferStore(store.buffer, store.value, [eval(index, names)])
    body = tirx.For(
        outer.loop_var,
        outer.min,
        outer.extent,
        outer.kind,
        tirx.For(outer.body.loop_var, outer.body.min, outer.body.extent, outer.body.kind, changed),
    )
    result = DivideNaturalNumbers()(tvm.IRModule({"kernel": kernel.with_body(body)}))["kernel"]
    return str(result.body.body.body.indices[0])


@pytest.mark.parametrize(
    "index", ["i // n", "i % n", "(i + n * 3) // (n + 1)", "i % (n * 4) // (n * 2)", "i // 3", "(i // n) % n"]
)
def test_where_no_operand_can_be_negative(index):
    assert "//" not in divided(index) and "%" not in divided(index)


@pytest.mark.parametrize("index", ["j // n", "(i - n) // n", "i // offset", "(i + offset) % n", "i // (n - 1)"])
def test_where_one_might_be_negative(index):
    assert ("//" in divided(index)) != ("%" in divided(index))


def test_shifts_stay():
    assert "//" in divided("i // 16") and "%" in divided("i % 16")
