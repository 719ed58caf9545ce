"""Merging of kernels that differ only in constants or messages, on a GPU: results stay the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import MoecError

from ..conftest import parse
from ..test_merge_alike import GATHERS, branches, unrolled


@pytest.mark.nightly
def test_an_unrolled_loop(program_of, emulated):
    program = program_of(ir.from_proto(parse(unrolled(9))))
    assert max(kernel.calls for kernel in program.kernels) >= 9
    x = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    (y,) = emulated(program)({"x": x}).values()
    np.testing.assert_allclose(y, np.stack([x[:, n:].sum(1) ** 2 for n in range(1, 10)], 1), rtol=1e-4, atol=1e-4)


@pytest.mark.nightly
def test_branches_that_differ_in_a_factor(program_of, emulated):
    factors = [0.1, 0.7, 3.0, 7.5, -0.3, 1e-3, 20.0, 5e-7]
    program = program_of(ir.from_proto(parse(branches(factors))))
    assert len(program.kernels) == 1
    x = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    for factor, y in zip(factors, emulated(program)({"x": x}).values(), strict=True):
        expected = np.maximum(1 / (1 + np.exp(-x * np.float32(factor + 1))) / np.float32(factor), np.float32(factor))
        np.testing.assert_allclose(y, expected, rtol=1e-5)


@pytest.mark.nightly
def test_checks_of_equal_kernels_name_their_own_nodes(program_of, emulated):
    program = program_of(ir.from_proto(parse(GATHERS)))
    assert [kernel.calls for kernel in program.kernels if "first" in kernel.nodes] == [2]
    full, empty = np.float32([1, 2]), np.float32([])
    run = emulated(program)
    np.testing.assert_array_equal(run({"x": full, "y": full})["q"], np.float32([2, 3]))
    for name, inputs in {"first": {"x": empty, "y": full}, "second": {"x": full, "y": empty}}.items():
        with pytest.raises(MoecError, match=f"node '{name}' \\(Gather\\)"):
            run(inputs)
