"""The instruments themselves: they find what is wrong, survive what crashes, and shrink it."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import onnx
import pytest

from ..isolated import Lost, Worker
from .configurations import drawn, shrunk
from .outcomes import Case, Outcome, compare, judge, run_onnxruntime, started_worker, table, unequal

X = np.array([[1.0, -2.0, np.nan, np.inf]], np.float32)
HEADER = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>\ng '


def case(text: str, x: np.ndarray = X) -> Case:
    return Case(onnx.parser.parse_model(HEADER + text), [{"x": x}])


def test_equal_arrays():
    assert unequal(X, X.copy(), 0) is None
    assert unequal(X + np.float32(1e-6), X, 1e-5) is None


@pytest.mark.parametrize("number", [1.5, 2.0, -300.0])
def test_a_unit_in_the_last_place_of_float16_is_rounding(number: float):
    expected = np.array([number], np.float16)
    above = np.nextafter(expected, np.array([np.inf], np.float16))
    assert unequal(above, expected, 1e-5) is None
    assert unequal(np.nextafter(above, np.array([np.inf], np.float16)), expected, 1e-5)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (X.astype(np.float64), "float64[1, 4], expected float32[1, 4]"),
        (X[0], "float32[4], expected float32[1, 4]"),
        (np.array([[1.0, -2.0, 0.0, np.inf]], np.float32), "1 of 4 differ, first 0.0 at [0, 2], expected nan"),
        (np.array([[1.0, -2.0, np.nan, -np.inf]], np.float32), "first -inf at [0, 3]"),
        (np.array([[np.nan, -2.0, np.nan, np.inf]], np.float32), "first nan at [0, 0]"),
        (np.array([[1.1, -2.0, np.nan, np.inf]], np.float32), "at [0, 0], expected 1.0"),
    ],
)
def test_unequal_arrays(found: np.ndarray, reason: str):
    assert reason in (unequal(found, X, 1e-3) or "")


def test_only_what_is_meaningful_is_compared():
    mask = np.array([[False], [True]])
    expected = np.zeros((2, 3), np.float32)
    assert unequal(np.array([[9, 9, 9], [0, 0, 0]], np.float32), expected, 0, mask) is None
    assert unequal(np.array([[0, 0, 0], [0, 9, 0]], np.float32), expected, 0, mask)


def test_a_wrong_result_is_found():
    negated = case("(float[N,4] x) => (float[N,4] y) { y = Neg (x) }")
    expected = run_onnxruntime(negated)
    assert isinstance(expected, list)
    assert compare(negated, expected) == Outcome("pass")
    outcome = compare(negated, [[-array for array in arrays] for arrays in expected])
    assert outcome.status == "wrong" and "output 'y': 3 of 4 differ" in outcome.detail


def test_what_onnxruntime_refuses_is_skipped():
    outcome = run_onnxruntime(case("(float[N,4] x) => (float y) { y = com.microsoft.Unheard (x) }"))
    assert isinstance(outcome, Outcome) and outcome.status == "skipped"


def test_what_moec_refuses_names_its_reason():
    outcome = compare(case("(float[N,4] x) => (float[N,4] y) { y = com.microsoft.Unheard (x) }"), [[X]])
    assert outcome.status == "refused" and "Unheard" in outcome.detail


def test_inputs_that_numpy_refuses_too_are_refused():
    """All sizes but those on the axis must be equal; onnxruntime leaves out what has no element before it looks."""
    text = "(float[K,M] x) => (float[1,L] y) <float[1,3] w = {1, 2, 3}> { y = Concat <axis = 1> (w, x) }"
    unlike = case(text, np.zeros((2, 0), np.float32))
    expected = run_onnxruntime(unlike)
    assert isinstance(expected, list)
    outcome = compare(unlike, expected)
    assert outcome.status == "refused" and "expected 1, as the others have" in outcome.detail


def test_inputs_that_moec_alone_refuses_are_a_crash(monkeypatch: pytest.MonkeyPatch):
    import moec

    def compile_nothing(_: Any) -> None:
        raise moec.InputError("node 'y' (Neg) says no")

    monkeypatch.setattr(moec, "compile", compile_nothing)
    outcome = compare(case("(float[N,4] x) => (float[N,4] y) { y = Neg (x) }"), [[-X]])
    assert outcome.status == "crashed" and "says no" in outcome.detail


def test_a_defect_is_a_crash(monkeypatch: pytest.MonkeyPatch):
    import moec

    def compile_nothing(_: Any) -> None:
        raise moec.common.errors.DefectError("a node did it")

    monkeypatch.setattr(moec, "compile", compile_nothing)
    outcome = compare(case("(float[N,4] x) => (float[N,4] y) { y = Neg (x) }"), [[-X]])
    assert outcome.status == "crashed" and "a node did it" in outcome.detail


def test_a_worker_outlives_what_it_calls():
    worker = started_worker()
    try:
        assert worker.do((abs, -3)) == 3
        assert worker.do((os._exit, 7)) == Lost("crashed", "exit code 7")
        assert worker.do((abs, -4)) == 4
    finally:
        worker.close()


def compute(seconds: float) -> float:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return seconds


def rest_and_compute(rests: int) -> int:
    for _ in range(rests):
        time.sleep(0.25)
        compute(0.02)
    return rests


@pytest.mark.parametrize("work", [(compute, 60), (time.sleep, 60)])
def test_who_computes_for_too_long_or_does_nothing_hangs(work: Any):
    worker = Worker(_call, seconds=0.5)
    assert worker.do(work) == Lost("hung", "no result after 0.5 s")


def test_who_is_slow_by_the_clock_alone_does_not_hang():
    worker = Worker(_call, seconds=0.5)
    try:
        assert worker.do((rest_and_compute, 4)) == 4
    finally:
        worker.close()


def _call(item: Any) -> Any:
    function, argument = item
    return function(argument)


@pytest.mark.parametrize("lost", [run_onnxruntime, compare])
def test_whose_end_of_the_process_it_is(lost: Any):
    class Dies:
        def do(self, call: tuple[Any, ...]) -> Any:
            function, *arguments = call
            return Lost("crashed", "SIGSEGV") if function is lost else function(*arguments)

    outcome = judge(case("(float[N,4] x) => (float[N,4] y) { y = Neg (x) }"), Dies())  # type: ignore[arg-type]
    assert outcome.status == ("skipped" if lost is run_onnxruntime else "crashed") and "SIGSEGV" in outcome.detail


def test_shrinking_keeps_what_a_failure_needs():
    choices = {"a": (0, 1, 2), "b": (False, True), "c": ("x", "y", "z")}
    failing = {"a": 2, "b": True, "c": "z"}
    assert shrunk(failing, choices, lambda c: c["a"] > 0 and c["c"] == "z") == {"a": 1, "b": False, "c": "z"}


def test_draws_repeat_and_reach_every_value():
    choices = {"a": (0, 1, 2), "b": ("only",)}
    first, again = ([drawn(choices, np.random.default_rng(seed)) for seed in range(50)] for _ in range(2))
    assert first == again and {one["a"] for one in first} == {0, 1, 2}


def test_a_table_counts_by_kind():
    text = table([("MoE", Outcome("pass")), ("MoE", Outcome("wrong")), ("Gelu", Outcome("skipped"))])
    assert [line.split() for line in text.splitlines()[1:]] == [
        ["Gelu", "1", "0", "0", "0", "0", "1"],
        ["MoE", "2", "1", "0", "1", "0", "0"],
        ["all", "3", "1", "0", "1", "0", "1"],
    ]
