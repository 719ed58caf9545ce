"""Guard of the tests' own runner of kernels: an access next to an array is an error."""

from __future__ import annotations

import functools
import sys

import numpy as np
import pytest

from moec.simulators.cuda import emulated_library
from moec.targets.gpu.kernels import combine
from moec.targets.tvm.heavy.experts import CombineProblem

from . import kernel_runner
from .layers import undefined

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a fault ends the process")


def moved(by: int, source: str, launches: list, **options: object) -> object:
    """The library of a faulty kernel, which reads ``by`` numbers after those that it should read."""
    assert source.count("rows_ptr[") == 1
    return emulated_library(source.replace("rows_ptr[", f"rows_ptr[{by} + "), launches, **options)


@pytest.mark.parametrize("by", [-1, 0, 1])
def test_a_number_beside_an_array_cannot_be_read(monkeypatch, by):
    monkeypatch.setattr(kernel_runner, "emulated_library", functools.partial(moved, by))
    run = kernel_runner.build(combine.trim(CombineProblem(4, 19, "float16")))
    ids, pairs = np.zeros((21, 1), np.int32), np.arange(399, dtype=np.float32).reshape(21, 19)
    if by == 0:
        y = run(ids, pairs, undefined((21, 19), "float16"))
        np.testing.assert_array_equal(y, pairs)
        return
    with pytest.raises(RuntimeError, match="which is outside of every array"):
        run(ids, pairs, undefined((21, 19), "float16"))
