"""Chains of operators that read a value twice are cut into several kernels, and others are fused as they were."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import moec
from moec import targets
from moec.common.budgets import FUSED_LOADS, FUSED_REPEATS

from .conftest import parse


def silus(count: int) -> str:
    """Each reads the one before in two places."""
    nodes = " ".join(f"s{n} = Sigmoid(x{n}) x{n + 1} = Mul(x{n}, s{n})" for n in range(count))
    return f"g (float[T,8] x) => (float[T,8] y) {{ x0 = Neg(x) {nodes} y = Neg(x{count}) }}"


def rotations(count: int) -> str:
    nodes = " ".join(
        f"a{n}, b{n} = Split<axis = 1>(x{n}, s) x{n + 1} = Concat<axis = 1>(b{n}, a{n})" for n in range(count)
    )
    return f"g (float[T,8] x) => (float[T,8] y) <int64[2] s = {{4, 4}}> {{ x0 = Neg(x) {nodes} y = Neg(x{count}) }}"


@pytest.mark.parametrize("chain", [silus, rotations])
def test_a_chain_within_the_budget_is_one_kernel(chain):
    program = targets.get("cpu").compile(ir.from_proto(parse(chain(6))))
    assert len(program.kernels) == 1 and not program.warnings


@pytest.mark.parametrize("chain", [silus, rotations])
def test_a_longer_chain_is_cut_and_that_is_said(chain):
    """Uncut, an element would take 2^32 loads."""
    program = targets.get("cpu").compile(ir.from_proto(parse(chain(32))))
    assert 1 < len(program.kernels) <= 16
    (warning,) = program.warnings
    assert warning.startswith(FUSED_LOADS.step) and warning.endswith(FUSED_LOADS.plain_way)


def chain(operator: str, count: int) -> str:
    nodes = " ".join(f"x{n + 1} = {operator}(x{n})" for n in range(count))
    return f"g (float[T,8] x) => (float[T,8] y) {{ x0 = Neg(x) {nodes} y = Neg(x{count}) }}"


@pytest.mark.parametrize(("operator", "count"), [("Relu", 4), ("Tanh", 4), ("Exp", 20)])
def test_few_operators_that_repeat_their_operand_are_one_kernel(operator, count):
    program = targets.get("cpu").compile(ir.from_proto(parse(chain(operator, count))))
    assert len(program.kernels) == 1 and not program.warnings


@pytest.mark.parametrize("operator", ["Relu", "Tanh"])
def test_more_of_them_are_cut_and_that_is_said(operator):
    program = targets.get("cpu").compile(ir.from_proto(parse(chain(operator, 12))))
    assert sum(kernel.calls for kernel in program.kernels) == 5  # the fifth and the tenth stand by themselves
    (warning,) = program.warnings
    assert warning.startswith(f"an element of a fused kernel may take {FUSED_REPEATS.limit} nested operators")


def test_a_cut_chain_computes_the_same():
    x = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    (y,) = moec.compile(parse(rotations(33))).run({"x": x}).values()
    np.testing.assert_array_equal(y, np.roll(x, 4, axis=1))


def test_a_long_chain_that_reads_everything_once_is_fused():
    assert not targets.get("cpu").compile(ir.from_proto(parse(chain("Neg", 200)))).warnings
