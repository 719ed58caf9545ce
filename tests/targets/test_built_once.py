"""Kernels are built once for equal arguments, and anew for others."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import tvm_ffi
from tvm import tirx

from moec.targets.tvm.kernels.kernel import built_once


@dataclasses.dataclass(frozen=True)
class Problem:
    size: int
    hints: Any = ()


def build(problem: Any, scale: Any = 1) -> tirx.PrimFunc:
    return tirx.PrimFunc([], tirx.Evaluate(tirx.IntImm("int64", int(problem.size * scale))))


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ((Problem(3),), (Problem(3),), True),
        ((Problem(3), 2), (Problem(3), 2), True),
        ((Problem(3),), (Problem(4),), False),
        ((Problem(3), 2), (Problem(3), 2.0), False),
        ((Problem(3, hints=[]),), (Problem(3, hints=[]),), False),
    ],
    ids=["equal", "equal options", "another problem", "another type", "without a hash"],
)
def test_what_is_built_once(first, second, same):
    once = built_once(build)
    one, other = once(*first), once(*second)
    assert one.same_as(other) == same
    assert tvm_ffi.structural_equal(other, build(*second))
