"""Guards of launches: sizes that may be zero are tested before the launch."""

from __future__ import annotations

import pytest
import tvm
import tvm_ffi
from tvm import tirx
from tvm.script import tirx as T

from moec.targets.base import SizeRange
from moec.targets.gpu.lowering.launch_conditions import ApplyLaunchConditions, launch_between, launch_if
from moec.targets.tvm.kernels.crossover import Crossover

TAGS = ["blockIdx.x", "threadIdx.x", "tirx.use_dyn_shared_memory"]


@T.prim_func(s_tir=True)
def dynamic(x_handle: T.handle):
    rows = T.int64()
    x = T.match_buffer(x_handle, (rows,), "float32")
    T.call_ffi_kernel("fill_kernel", x.data, rows, rows, T.int64(256), T.int64(0), launch_params=TAGS, ret_ty="int32")


@T.prim_func(s_tir=True)
def static(x_handle: T.handle):
    x = T.match_buffer(x_handle, (8,), "float32")
    T.call_ffi_kernel("fill_kernel", x.data, T.int64(8), T.int64(256), T.int64(0), launch_params=TAGS, ret_ty="int32")


@T.prim_func(s_tir=True)
def empty(x_handle: T.handle):
    x = T.match_buffer(x_handle, (8,), "float32")
    T.call_ffi_kernel("fill_kernel", x.data, T.int64(0), T.int64(256), T.int64(0), launch_params=TAGS, ret_ty="int32")


@pytest.mark.parametrize(("function", "guards"), [(dynamic, 1), (static, 0)])
def test_guards_only_what_may_be_empty(function, guards):
    text = ApplyLaunchConditions()(tvm.IRModule({"kernel": function}))["kernel"].script()
    assert text.count("if rows > ") == guards
    assert text.count("call_ffi_kernel") == 1


def test_a_launch_that_is_known_to_be_empty_is_never_made():
    text = ApplyLaunchConditions()(tvm.IRModule({"kernel": empty}))["kernel"].script()
    assert "if False" in text or "if T.bool(False)" in text, text


def test_other_statements_stay():
    function = tirx.PrimFunc([], tirx.Evaluate(tirx.const(0, "int32"))).with_attr("global_symbol", "kernel")
    module = tvm.IRModule({"kernel": function})
    assert tvm_ffi.structural_equal(ApplyLaunchConditions()(module)["kernel"], function)


@pytest.mark.parametrize(
    ("limits", "conditions"),
    [
        ({"most": 16}, ["rows <= "]),
        ({"least": 17}, ["rows >= "]),
        ({"least": 2, "most": 3}, ["rows >= ", "rows <= "]),
        ({}, []),
    ],
)
def test_a_range_of_sizes_can_be_asked_for(limits, conditions):
    kernel = launch_if(dynamic, 0, 0, SizeRange(**limits))
    text = ApplyLaunchConditions()(tvm.IRModule({"kernel": kernel}))["kernel"].script()
    assert "rows > " in text
    assert [sign for sign in ("rows >= ", "rows <= ") if sign in text] == conditions


def test_bounds_can_be_numbers_that_the_host_gets():
    reached, *missed = Crossover("a", "rows", 17), Crossover("b", "rows", 49), Crossover("c", "rows", 97, 129)
    kernel = launch_between(dynamic, 0, [reached], missed)
    text = ApplyLaunchConditions()(tvm.IRModule({"kernel": kernel}))["kernel"].script()
    assert text.count("if rows > ") == 1
    assert "rows >= reached" in text and "rows < missed" in text and "T.min(missed_1, T.int64(129))" in text
    assert len(kernel.params) == len(dynamic.params) + 3


def test_without_bounds_a_kernel_stays_as_it_is():
    assert launch_between(dynamic, 0, [], []) is dynamic
