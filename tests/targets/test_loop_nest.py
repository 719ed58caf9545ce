"""Loops of a kernel: iterations, bytes of tensors and operations, of two branches the greater."""

from __future__ import annotations

from tvm.script import tirx as T

from moec.targets.tvm.phases.loop_nest import LoopNest
from moec.targets.tvm.text import readable
from moec.targets.tvm.text.statement_lines import forgotten, numbered


@T.prim_func
def branching(x_handle: T.handle, order: T.Buffer((8,), "int32"), y: T.Buffer((8, 16), "float32")):
    n = T.int64()
    x = T.match_buffer(x_handle, (n, 16), "float32")
    scratch = T.alloc_buffer((16,), "float32")
    for row in T.parallel(n):
        if order[0] < 3:
            for j in range(16):
                scratch[j] = x[row, j]
        else:
            for j in range(16):
                scratch[j] = x[row, j] * x[row, j] + T.float32(1)
        while scratch[0] > T.float32(0):
            scratch[0] = scratch[0] - T.float32(1)
        for j in range(16):
            y[order[row], j] = scratch[j]


@T.prim_func
def empty(y: T.Buffer((8,), "float32")):
    y[0] = T.float32(1)


def nest(function) -> LoopNest:
    return LoopNest(forgotten(readable(numbered(function))))


def test_loops_count_all_their_iterations():
    row, moved, squared, waiting, stored = nest(branching).loops
    assert [loop.inside for loop in (row, moved, squared, waiting, stored)] == [-1, 0, 0, 0, 0]
    assert (row.variable, row.kind, row.extent) == ("row", "parallel", "n")
    assert (moved.extent, moved.bytes_read, moved.bytes_written, moved.operations) == ("16", "64", "0", "0")
    assert (squared.bytes_read, squared.operations) == ("128", "32")
    assert (waiting.extent, waiting.operations) == ("", "1"), "of one iteration"
    assert (stored.bytes_read, stored.bytes_written) == ("64", "64"), "the order is read, scratch is no tensor"
    per_row = (4 + 128 + 64, 64, 32 + 1)
    assert (row.bytes_read, row.bytes_written, row.operations) == tuple(f"{count} * n" for count in per_row)


def test_buffers_are_parameters_and_what_is_allocated():
    buffers = {buffer.name: buffer for buffer in nest(branching).buffers}
    assert {name: buffer.scope for name, buffer in buffers.items()} == {
        "x": "parameter",
        "order": "parameter",
        "y": "parameter",
        "scratch": "global",
    }
    assert (buffers["x"].shape, buffers["x"].bytes) == (("n", "16"), "4 * n * 16")
    assert buffers["scratch"].bytes == "64"


def test_a_kernel_without_loops_has_none():
    assert nest(empty).loops == []
