"""Padding of rows with trailing zeros, in the emulator."""

from __future__ import annotations

import numpy as np

from moec.targets.gpu.kernels.pad_rows import Padding, pad_rows

from ....products import thinned
from ...cuda.kernels.kernel_runner import build
from ...cuda.kernels.layers import DTYPES, undefined


@thinned("inner, padded, dtype", [(61, 64, "bfloat16"), (5, 64, "float16"), (1, 4, "float32")], 3)
def test_zeros_stand_behind_rows(inner, padded, dtype):
    kernel = build(pad_rows(Padding(inner, padded, dtype)))
    for count in (0, 1, 17, 300):
        rows = np.random.default_rng(count).standard_normal((count, inner), np.float32).astype(DTYPES[dtype])
        expected = np.zeros((count, padded), rows.dtype)
        expected[:, :inner] = rows
        np.testing.assert_array_equal(kernel(rows, undefined(expected.shape, dtype)), expected)
