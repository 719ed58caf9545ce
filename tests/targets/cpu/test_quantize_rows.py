"""The quantisation of activations against its meaning in numpy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from moec.ir.products import quantize_rows as quantized
from moec.targets.cpu.hardware.machine import Machine
from moec.targets.cpu.kernels.quantize_rows import QuantizedRows, quantize_rows

from ...products import sampled
from .kernel_runner import build

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.mark.parametrize(
    ("dtype", "sizes"), sampled(DTYPES, [(256, 128, 32), (72, 16, 16), (37, 0, 0), (40, 32, 16)], 3)
)
def test_rows_of_every_type_become_int8(dtype, sizes) -> None:
    width, group, sum_group = sizes
    padded = -(-width // (group or 4)) * (group or 4)
    problem = QuantizedRows(width, width, padded, group, sum_group, dtype)
    rows = np.random.default_rng(0).standard_normal((3, width)).astype(DTYPES[dtype])
    rows[1] = 0
    outputs = np.zeros((3, problem.row_bytes), np.int8), np.zeros((3, problem.scales), np.float32)
    numbers, scales, sums = build(quantize_rows(problem, Machine.host()), Machine.host()).outputs(
        3, rows, *outputs, np.zeros((3, problem.sums), np.int32)
    )
    expected_scales, expected = quantized(rows.astype(np.float32), group)
    np.testing.assert_array_equal(numbers[:, :width], expected)
    np.testing.assert_array_equal(numbers[:, width:padded], 0)
    np.testing.assert_allclose(scales[:, : expected_scales.shape[1]], expected_scales, rtol=1e-6)
    whole = np.pad(expected.astype(np.int32), ((0, 0), (0, padded - width))).reshape(3, problem.sums, -1)
    np.testing.assert_array_equal(sums, whole.sum(axis=2))
