"""Schedules for a GPU of kernels that were written for a processor."""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import tirx
from tvm.script import tirx as T

from moec.targets.gpu.lowering.schedule import BLOCK_THREADS, ScheduleForGpu, in_order


@T.prim_func(s_tir=True)
def serial(x_handle: T.handle):
    rows = T.int64()
    x = T.match_buffer(x_handle, (rows,), "float32")
    for row in T.serial(rows):
        x[row] = T.float32(1)


@T.prim_func(s_tir=True)
def parallel(x_handle: T.handle):
    rows = T.int64()
    x = T.match_buffer(x_handle, (rows,), "float32")
    for row in T.parallel(rows):
        x[row] = T.float32(1)


def test_a_serial_kernel_gets_one_thread():
    text = in_order(serial).script()
    assert 'T.thread_binding(T.int64(1), thread="blockIdx.x")' in text
    assert 'T.thread_binding(T.int64(1), thread="threadIdx.x")' in text


def test_turns_of_a_parallel_loop_are_shared_out():
    text = in_order(parallel).script()
    assert "T.parallel" not in text
    assert f'T.thread_binding(T.int64({BLOCK_THREADS}), thread="threadIdx.x")' in text
    assert "< rows" in text


def test_only_finished_kernels_for_a_processor_are_changed():
    finished = serial.with_attr("tirx.is_scheduled", True)
    own = finished.without_attr("s_tir")
    with tvm.target.Target({"kind": "cuda", "arch": "sm_80"}):
        module = ScheduleForGpu()(tvm.IRModule({"finished": finished, "own": own}))
    assert "thread_binding" in module["finished"].script()
    assert isinstance(module["own"], tirx.PrimFunc)
    assert tvm_ffi.structural_equal(module["own"], own)
