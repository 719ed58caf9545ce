"""Guards of launches: sizes that may be zero are tested before the launch."""

from __future__ import annotations

import pytest
import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.script import tirx as T

from moec.targets.base import LaunchCondition, SizeRange
from moec.targets.gpu.lowering.launch_conditions import (
    LAUNCH_IF,
    ApplyLaunchConditions,
    LaunchSizes,
    launch_between,
    launch_beyond,
    launch_if,
    launch_up_to,
)
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


UP_TO_16 = launch_if(dynamic, 0, 0, SizeRange(0, 16))
BELOW_A_NUMBER = launch_between(dynamic, 0, [], [Crossover("a", "rows", 3, 129)])
NUMBER = relax.Var("number", tvm.ir.PrimType("int64"))


def _sizes(kernel: tirx.PrimFunc, size: str = "T", number: relax.Var = NUMBER) -> LaunchSizes | None:
    rows = relax.Var("x", relax.TensorType([_NAMED[size]], "float32"))
    return LaunchSizes.of(kernel, [*[number] * (len(kernel.params) - 1), rows], [])


_NAMED = {name: tirx.Var(name, "int64") for name in ("T", "S")}


def _is_launched(kernel: tirx.PrimFunc | None, rows: int, number: int) -> bool:
    """Whether the host launches the kernel."""
    if kernel is None:
        return False
    asked, (*numbers, x) = kernel.attrs[LAUNCH_IF], kernel.params
    assert kernel.params[int(asked["parameter"])].same_as(x)
    (condition,) = _conditions(ApplyLaunchConditions()(tvm.IRModule({"kernel": kernel}))["kernel"])
    values = {**{each: tirx.IntImm("int64", number) for each in numbers}, x.shape[0]: tirx.IntImm("int64", rows)}
    value = tvm_ffi.structural_map(condition, [(tvm.ir.Var, lambda variable: values.get(variable, variable))])
    return bool(tvm.sym.Analyzer().simplify(value))


def _conditions(function: tirx.PrimFunc) -> list[tirx.Expr]:
    conditions: list[tirx.Expr] = []
    tvm_ffi.structural_walk(function.body, [(tirx.IfThenElse, lambda each: conditions.append(each.condition))])
    return conditions


@pytest.mark.parametrize("number", [0, 1, 3, 16, 17, 18, 129, 500])
def test_each_kernel_of_a_shared_launch_is_launched_once(number: int):
    """Together or alone, for the sizes for which it would be launched without the other."""
    shared = launch_up_to(BELOW_A_NUMBER, 16)
    apart = [launch_beyond(kernel, shared) for kernel in (BELOW_A_NUMBER, UP_TO_16)]
    for rows in (1, 2, 3, 15, 16, 17, 18, 128, 129, 600):
        together = _is_launched(shared, rows, number)
        for kernel, alone in zip((BELOW_A_NUMBER, UP_TO_16), apart, strict=True):
            launches = [together, _is_launched(alone, rows, number)]
            assert launches.count(True) == _is_launched(kernel, rows, number), (rows, launches)


def test_a_kernel_that_is_always_in_a_shared_launch_has_none_alone():
    assert launch_beyond(launch_up_to(BELOW_A_NUMBER, 16), launch_up_to(BELOW_A_NUMBER, 16)) is None


@pytest.mark.parametrize(
    ("first", "second", "meet"),
    [
        (_sizes(UP_TO_16), _sizes(UP_TO_16), True),
        (_sizes(UP_TO_16), _sizes(BELOW_A_NUMBER), True),
        (_sizes(UP_TO_16), _sizes(launch_up_to(BELOW_A_NUMBER, 8)), True),
        (_sizes(UP_TO_16), _sizes(launch_if(dynamic, 0, 0, SizeRange(0, 8))), False),
        (_sizes(UP_TO_16), _sizes(launch_if(dynamic, 0, 0, SizeRange(17))), False),
        (_sizes(UP_TO_16), _sizes(BELOW_A_NUMBER, "S"), False),
        (_sizes(launch_if(dynamic, 0, 0, SizeRange(1, 16))), _sizes(BELOW_A_NUMBER), False),
        (_sizes(UP_TO_16), _sizes(launch_between(dynamic, 0, [Crossover("a", "rows", 3)], [])), False),
        (_sizes(BELOW_A_NUMBER), _sizes(BELOW_A_NUMBER), False),
    ],
    ids=[
        "the same",
        "a number",
        "both",
        "another constant",
        "many",
        "another size",
        "not none",
        "from it on",
        "numbers",
    ],
)
def test_kernels_meet_where_both_are_for_few(first: LaunchSizes, second: LaunchSizes, meet: bool):
    assert first.meet(second) == second.meet(first) == meet


def test_a_kernel_without_a_condition_has_no_sizes():
    assert _sizes(dynamic) is None


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        (SizeRange(0, 16), "M <= 16"),
        (SizeRange(3, 16), "3 <= M <= 16"),
        (SizeRange(17), "17 <= M"),
        (SizeRange(17, 16), "no M, by the estimates"),
    ],
)
def test_conditions_in_words(sizes: SizeRange, text: str):
    assert str(LaunchCondition("M", sizes)) == text
