"""A condition on sizes is checked once on the way to a value, and on every way."""

from __future__ import annotations

import numpy as np
import pytest

from moec.errors import MoecError


def chained(steps: int) -> str:
    """Every step writes to the result of the one before."""
    nodes = " ".join(f"x{n + 1} = ScatterElements<axis = 1>(x{n}, at, u{n})" for n in range(steps))
    updates = ", ".join(f"float[K,2] u{n}" for n in range(steps))
    return f"g (float[T,8] x0, int64[K,2] at, {updates}) => (float[T,8] x{steps}) {{ {nodes} }}"


APART = """g (float[T,8] a, float[T,8] b, int64[K,2] at, float[K,2] u, float[K,2] v) => (float[T,8] y, float[T,8] z) {
    y = ScatterElements<axis = 1>(a, at, u) z = ScatterElements<axis = 1>(b, at, v)
}"""


def checking(program) -> list[str]:
    return [kernel.name for kernel in program.kernels if "expected at most" in kernel.sources["tir"]]


def test_a_chain_checks_once(program_of, runner_of):
    program = program_of(chained(5))
    assert len(checking(program)) == 1
    generator = np.random.default_rng(0)
    at = np.array([[0, 3], [7, 1]])
    inputs = {f"u{n}": generator.normal(size=(2, 2)).astype(np.float32) for n in range(5)}
    x = generator.normal(size=(3, 8)).astype(np.float32)
    (y,) = runner_of(program)({"x0": x, "at": at, **inputs}).values()
    np.put_along_axis(x[:2], at, inputs["u4"], 1)
    np.testing.assert_array_equal(y, x)


def test_the_check_of_a_chain_still_stops_the_run(program_of, runner_of):
    inputs = {f"u{n}": np.zeros((4, 2), np.float32) for n in range(5)}
    with pytest.raises(MoecError, match="expected at most"):
        runner_of(program_of(chained(5)))({"x0": np.zeros((3, 8), np.float32), "at": np.zeros((4, 2), int), **inputs})


def test_what_does_not_follow_from_a_checked_value_is_checked(program_of):
    assert len(checking(program_of(APART))) == 2
