"""Merging of kernels that differ only in integers or messages, on a GPU: results stay the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import MoecError

from ..conftest import parse
from ..test_merge_alike import GATHERS, unrolled


@pytest.mark.nightly
def test_an_unrolled_loop(program_of, emulated):
    program = program_of(ir.from_proto(parse(unrolled(9))))
    assert max(kernel.calls for kernel in program.kernels) >= 9
    x = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    (y,) = emulated(program)({"x": x}).values()
    np.testing.assert_allclose(y, np.stack([x[:, n:].sum(1) ** 2 for n in range(1, 10)], 1), rtol=1e-4, atol=1e-4)


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
