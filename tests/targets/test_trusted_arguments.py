"""Kernels check the sizes of their arguments and their own requirements, and no types."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import te, tirx

from moec.runtime.tensors import to_runtime
from moec.targets.cpu.hardware.machine import Machine
from moec.targets.tvm.kernels.te_kernels import Requirement, prim_func
from moec.targets.tvm.phases.pipeline import KERNEL_PIPELINE
from moec.targets.tvm.phases.schedule import scheduled


@pytest.fixture(scope="module")
def built():
    """y = x + z over [n, 4], for n of at most 3."""
    n = tirx.Var("n", "int64")
    x, z = te.placeholder((n, 4), name="x"), te.placeholder((n, 4), name="z")
    y = te.compute(x.shape, lambda i, j: x[i, j] + z[i, j], name="y")
    function, _ = prim_func([x, z], [y], [Requirement(n <= 3, "at most 3 rows, please")])
    module = tvm.IRModule({"kernel": scheduled(function).with_attr("global_symbol", "kernel")})
    return tvm.tirx.build(module, target=tvm.target.Target(Machine.host().llvm), pipeline=KERNEL_PIPELINE)


def called(built, *shapes):
    arrays = [np.full(shape, number, np.float32) for number, shape in enumerate(shapes, 1)]
    built["kernel"](*map(to_runtime, arrays))
    return arrays[-1]


def test_sizes_that_agree_are_added(built):
    np.testing.assert_array_equal(called(built, (2, 4), (2, 4), (2, 4)), np.full((2, 4), 3))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 4), (3, 4), (2, 4)), r"Mismatched z.shape\[0\] on argument #1"),
        (((2, 4), (2, 4), (1, 4)), r"Mismatched y.shape\[0\] on argument #2"),
        (((2, 4), (2, 5), (2, 4)), r"Invalid z.shape\[1\] on argument #1"),
        (((4, 4), (4, 4), (4, 4)), "at most 3 rows, please"),
    ],
)
def test_sizes_that_do_not_agree_are_an_error(built, shapes, message):
    with pytest.raises(ValueError, match=message):
        called(built, *shapes)


def test_types_are_not_checked(built):
    llvm = built.inspect_source("ll")
    assert "z.shape[0]" in llvm
    assert not any(f".{fact} on argument" in llvm for fact in ("ndim", "dtype", "strides", "byte_offset", "device_id"))
    assert "Expected" not in llvm
