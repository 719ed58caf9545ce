"""The calls by which programs take loops, with bodies in Python."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moec.common.errors import InputError
from moec.runtime.device import Host
from moec.runtime.library import load_ffi
from moec.runtime.loops import LOOP, LOOP_RESULT, register_loops
from moec.runtime.program_run import ProgramRun
from moec.runtime.ranks import OneRank
from moec.runtime.tensors import from_runtime, to_runtime


def doubling(number, _going, state, addend):
    """``state * 2 + addend``, and a slice as long as the number of the step says, or 2."""
    step = int(from_runtime(number))
    built = from_runtime(state) * 2 + from_runtime(addend)
    return [to_runtime(built), to_runtime(np.full(2 if step < 3 else step, step, np.float32))]


def run(trips: int, state: np.ndarray, addend: np.ndarray, body=doubling) -> tuple[list[int], np.ndarray, np.ndarray]:
    """The sizes that the loop found, the state after its last step, and its slices, the last ones first."""
    register_loops()
    loop, result = (load_ffi().get_global_func(name) for name in (LOOP, LOOP_RESULT))
    counts, after = to_runtime(np.zeros(3, np.int64)), to_runtime(np.empty_like(state))
    machine = SimpleNamespace(get_function=lambda name: {"loop_4": body}[name])

    def call() -> Any:
        initial = to_runtime(state)
        loop(
            4,
            1,
            0,
            1,
            1,
            0,
            to_runtime(np.array(trips)),
            to_runtime(np.array(True)),
            initial,
            to_runtime(addend),
            counts,
        )
        from_runtime(initial)[...] = -1  # a program may write results to the memory of what it gave
        result(0, -1, 0, counts, after)
        _, steps, size = from_runtime(counts).tolist()
        slices = to_runtime(np.empty((size, steps), np.float32))
        result(1, 1, 1, counts, slices)
        return slices

    slices = ProgramRun(machine, OneRank(), Host()).call(call)
    return from_runtime(counts).tolist(), from_runtime(after), from_runtime(slices)


@pytest.mark.parametrize("trips", [0, 1, 3])
def test_states_and_slices(trips):
    state, addend = np.array([1, 2], np.float32), np.array([0, 3], np.float32)
    actual, after, slices = run(trips, state.copy(), addend)
    for _ in range(trips):
        state = state * 2 + addend
    np.testing.assert_array_equal(after, state)
    np.testing.assert_array_equal(slices, np.tile(np.arange(trips, dtype=np.float32)[::-1], (2, 1)))
    assert actual[1:] == [trips, 2]


def test_slices_of_other_sizes_are_an_error():
    with pytest.raises(InputError, match=r"slices of sizes \[2\] and \[3\]; expected equal sizes"):
        run(4, np.ones(2, np.float32), np.ones(2, np.float32))


def test_a_body_that_fails_says_so_itself():
    def body(*_):
        raise InputError("three tokens")

    ones = np.ones(2, np.float32)
    with pytest.raises(InputError, match="three tokens"):
        run(1, ones, ones, body)
    np.testing.assert_array_equal(run(0, ones.copy(), ones)[1], [1, 1])


def test_without_a_step_a_body_that_fails_leaves_sizes_at_0():
    def body(*_):
        raise ValueError("nothing to read")

    ones = np.ones(2, np.float32)
    actual, after, slices = run(0, ones.copy(), ones, body)
    assert actual[1:] == [0, 0] and slices.shape == (0, 0)
    np.testing.assert_array_equal(after, ones)
