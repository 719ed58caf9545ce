"""Merging of kernels that differ only in integers, on a GPU: results stay the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from ..conftest import parse
from ..test_merge_alike import unrolled


@pytest.mark.nightly
def test_an_unrolled_loop(program_of, emulated):
    program = program_of(ir.from_proto(parse(unrolled(9))))
    assert max(kernel.calls for kernel in program.kernels) >= 9
    x = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    (y,) = emulated(program)({"x": x}).values()
    np.testing.assert_allclose(y, np.stack([x[:, n:].sum(1) ** 2 for n in range(1, 10)], 1), rtol=1e-4, atol=1e-4)
