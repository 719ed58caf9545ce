"""Buffers of fixed size lie on the stack up to a limit, and in TVM's pool beyond it."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from moec.runtime.tensors import to_runtime
from moec.targets.cpu.hardware.machine import Machine
from moec.targets.tvm.phases.pipeline import KERNEL_PIPELINE
from moec.targets.tvm.phases.stack_buffers import MOST_BYTES


@pytest.mark.parametrize(("size", "calls_pool"), [(MOST_BYTES // 4, False), (MOST_BYTES // 4 + 1, True)])
def test_buffers_up_to_the_limit_are_on_the_stack(size, calls_pool):
    @T.prim_func(s_tir=True)
    def kernel(x_handle: T.handle, y_handle: T.handle):
        T.func_attr({"global_symbol": "kernel"})
        rows = T.int64()
        x = T.match_buffer(x_handle, (rows, size), "float32")
        y = T.match_buffer(y_handle, (rows, size), "float32")
        for row in T.parallel(rows):
            kept = T.alloc_buffer((size,), "float32")
            for i in T.serial(size):
                kept[i] = x[row, i]
            for i in T.serial(size):
                y[row, i] = kept[size - 1 - i]

    target = tvm.target.Target(Machine.host().llvm)
    built = tvm.tirx.build(tvm.IRModule({"kernel": kernel}), target=target, pipeline=KERNEL_PIPELINE)
    assert ("TVMBackendAllocWorkspace" in built.inspect_source("ll")) is calls_pool
    x = np.arange(3 * size, dtype=np.float32).reshape(3, size)
    y = np.zeros_like(x)
    built["kernel"](to_runtime(x), to_runtime(y))
    np.testing.assert_array_equal(y, x[:, ::-1])
