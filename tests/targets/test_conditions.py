"""A condition on sizes is checked once on the way to a value, and on every way."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax, tirx

from moec.common.errors import MoecError
from moec.targets.tvm.kernels.te_kernels import Requirement
from moec.targets.tvm.sizes import conditions
from moec.targets.tvm.sizes.conditions import CheckedConditions


def chained(steps: int) -> str:
    """A graph of steps, each of which scatters into the result of the previous one."""
    nodes = " ".join(f"x{n + 1} = ScatterElements<axis = 1>(x{n}, at, u{n})" for n in range(steps))
    updates = ", ".join(f"float[K,2] u{n}" for n in range(steps))
    return f"g (float[T,8] x0, int64[K,2] at, {updates}) => (float[T,8] x{steps}) {{ {nodes} }}"


APART = """g (float[T,8] a, float[T,8] b, int64[K,2] at, float[K,2] u, float[K,2] v) => (float[T,8] y, float[T,8] z) {
    y = ScatterElements<axis = 1>(a, at, u) z = ScatterElements<axis = 1>(b, at, v)
}"""


def checks(program) -> int:
    """Number of times that a run checks the condition."""
    return sum(kernel.calls for kernel in program.kernels if "expected at most" in kernel.sources["tir"])


def test_a_chain_checks_once(program_of, runner_of):
    program = program_of(chained(5))
    assert checks(program) == 1
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
    assert checks(program_of(APART)) == 2


SIZE = tirx.Var("n", "int64")
SMALL, EVEN = Requirement(SIZE <= 8, "too large"), Requirement(tirx.floormod(SIZE, 2) == 0, "odd")


def variables(*names: str) -> list[relax.Var]:
    return [relax.Var(name, relax.TensorType([4], "float32")) for name in names]


def test_conditions_hold_for_what_a_kernel_made_that_checks_them():
    checked, (a, b) = CheckedConditions(), variables("a", "b")
    checked.check([SMALL], [a])
    assert checked.unchecked([SMALL, EVEN], [a]) == [EVEN] and checked.unchecked([], [a]) == []
    assert checked.unchecked([SMALL], [b]) == [SMALL] and checked.unchecked([SMALL], [b, a]) == []
    checked.check([EVEN], [a, b])
    assert checked.unchecked([SMALL, EVEN], [a]) == [] and checked.unchecked([SMALL, EVEN], [b]) == [SMALL]


@pytest.mark.parametrize("nested", [True, False])
def test_conditions_hold_for_what_follows(nested: bool):
    """From one of two, for the other checks another condition; as elements of tuples, too."""
    checked, (a, b, c, d, e) = CheckedConditions(), variables("a", "b", "c", "d", "e")
    checked.follow(e, relax.op.negative(a))
    checked.check([SMALL], [a])
    checked.check([EVEN], [b])
    if nested:
        checked.follow(c, relax.Tuple([a, b]))
        checked.follow(d, relax.TupleGetItem(c, 0))
    else:
        checked.follow(c, relax.op.add(a, b))
        checked.follow(d, relax.op.concat([e, c]))
    for variable in (c, d):
        assert checked.unchecked([SMALL, EVEN], [variable]) == []
    assert checked.unchecked([SMALL], [e]) == [SMALL]


def test_only_so_many_conditions_are_followed(monkeypatch):
    monkeypatch.setattr(conditions, "TRACKED", 1)
    checked, (a,) = CheckedConditions(), variables("a")
    checked.check([SMALL, EVEN], [a])
    assert checked.unchecked([SMALL, EVEN], [a]) == [EVEN]
