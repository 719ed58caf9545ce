"""A nest of loops is skipped where its inner loops have no steps, and only there."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import te, tirx
from tvm.script import tirx as T

from moec.runtime.tensors import to_runtime
from moec.targets.cpu.hardware.machine import Machine
from moec.targets.tvm.kernels.te_kernels import prim_func
from moec.targets.tvm.phases.host_code import is_mapping
from moec.targets.tvm.phases.pipeline import KERNEL_PIPELINE
from moec.targets.tvm.phases.schedule import GENERIC, scheduled
from moec.targets.tvm.phases.skip_empty_loops import SkipEmptyLoops


def skipped(kernel: tirx.PrimFunc) -> str:
    module = tvm.IRModule({"kernel": kernel.with_attr(GENERIC, True)})
    return SkipEmptyLoops()(module)["kernel"].script()


def test_unknown_inner_sizes_are_checked_before_the_outermost_loop():
    @T.prim_func(s_tir=True)
    def kernel(y_handle: T.handle):
        n, m, k = T.int64(), T.int64(), T.int64()
        y = T.match_buffer(y_handle, (n, 4, m, k), "float32")
        for i, j in T.grid(n, 4):
            for a, b in T.grid(m, k):
                y[i, j, a, b] = T.float32(0)

    text = skipped(kernel)
    assert "if m > T.int64(0) and k > T.int64(0):" in text
    assert text.count("if ") == 1


def test_two_loops_inside_are_skipped_where_neither_has_a_step():
    @T.prim_func(s_tir=True)
    def kernel(y_handle: T.handle):
        n, m, k = T.int64(), T.int64(), T.int64()
        y = T.match_buffer(y_handle, (n, m + k), "float32")
        for i in T.serial(n):
            for a in T.serial(m):
                y[i, a] = T.float32(0)
            for a in T.serial(k):
                y[i, m + a] = T.float32(1)

    assert "if m > T.int64(0) or k > T.int64(0):" in skipped(kernel)


def test_a_step_that_writes_is_never_skipped():
    @T.prim_func(s_tir=True)
    def sums(x_handle: T.handle, y_handle: T.handle):
        n, m = T.int64(), T.int64()
        x = T.match_buffer(x_handle, (n, m), "float32")
        y = T.match_buffer(y_handle, (n,), "float32")
        for i in T.serial(n):
            y[i] = T.float32(0)
            for a in T.serial(m):
                y[i] = y[i] + x[i, a]

    assert "if " not in skipped(sums)


def test_a_length_that_depends_on_the_step_is_not_checked():
    @T.prim_func(s_tir=True)
    def triangle(y_handle: T.handle):
        n = T.int64()
        y = T.match_buffer(y_handle, (n, n), "float32")
        for i in T.serial(n):
            for a in T.serial(i):
                y[i, a] = T.float32(0)

    assert "if " not in skipped(triangle)


def test_finished_kernels_stay():
    @T.prim_func(s_tir=True)
    def kernel(y_handle: T.handle):
        n, m = T.int64(), T.int64()
        y = T.match_buffer(y_handle, (n, m), "float32")
        for i, a in T.grid(n, m):
            y[i, a] = T.float32(0)

    assert "if " not in SkipEmptyLoops()(tvm.IRModule({"kernel": kernel}))["kernel"].script()


def test_an_endless_outer_loop_around_nothing_ends_at_once():
    sizes = tirx.Var("n", "int64"), tirx.Var("m", "int64"), tirx.Var("k", "int64")
    function, _ = prim_func(
        [te.placeholder(sizes, name="x")], [te.compute(sizes, lambda i, j, o: (i + j + o).astype("float32"), name="y")]
    )
    kernel = scheduled(function).with_attr("global_symbol", "kernel")
    assert is_mapping(kernel), "generated at the lower level of optimisation"
    target = tvm.target.Target({**tvm.target.Target(Machine.host().llvm).export(), "opt-level": 0})
    built = tvm.tirx.build(tvm.IRModule({"kernel": kernel}), target=target, pipeline=KERNEL_PIPELINE)
    for shape in ((2**40, 0, 5), (2**40, 5, 0), (2**20, 2**20, 0)):
        built["kernel"](to_runtime(np.empty(shape, np.float32)), to_runtime(np.empty(shape, np.float32)))
    y = np.zeros((2, 3, 4), np.float32)
    built["kernel"](to_runtime(np.zeros_like(y)), to_runtime(y))
    np.testing.assert_array_equal(y, np.add.outer(np.add.outer(np.arange(2), np.arange(3)), np.arange(4)))
