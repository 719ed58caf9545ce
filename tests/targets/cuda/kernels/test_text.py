"""Readability of the kernels' CUDA C: names of variables, arrays and helpers."""

from __future__ import annotations

import pytest
from tvm.script import tirx as T

from moec.ir.dialect import RouteSpec
from moec.targets.gpu.kernels import dispatch, route
from moec.targets.gpu.kernels.launch import ATTRIBUTES, blocks_for
from moec.targets.tvm.heavy.route import RouteProblem

from .kernel_runner import source_of


@T.prim_func
def double_rows(x_handle: T.handle, y_handle: T.handle):
    T.func_attr(ATTRIBUTES)
    rows = T.int32()
    x = T.match_buffer(x_handle, (rows, 64), "float32")
    y = T.match_buffer(y_handle, (rows, 64), "float32")
    T.device_entry()
    block = T.cta_id([blocks_for(rows, 4)])
    thread = T.thread_id([128])
    lane: T.let = thread % 32
    row: T.let = block * 4 + thread // 32
    if row < rows:
        for part in T.serial(2):
            y[row, part * 32 + lane] = x[row, part * 32 + lane] * T.float32(2)


def test_names_and_loops_stay():
    source = source_of(double_rows)
    assert "int lane = thread & 31;" in source
    assert "if (row < rows)" in source and "for (int part = 0; part < 2; ++part)" in source
    assert "moec_value" not in source  # the call that hides values from TVM's phases


@pytest.mark.parametrize(
    "kernel", [route.route(RouteProblem(RouteSpec(k=8), 256)), dispatch.dispatch(256, 64)], ids=["route", "dispatch"]
)
def test_no_value_stays_hidden(kernel):
    source = source_of(kernel)
    assert "moec_value" not in source and "int warp = " in source
