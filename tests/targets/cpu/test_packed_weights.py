"""Scales are packed in float16 exactly where no number changes by it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moec.ir.weights.encode import encode
from moec.ir.weights.format import WeightFormat
from moec.ir.weights.stored import StoredWeight, WeightRun
from moec.targets.cpu.hardware.machine import MACHINES
from moec.targets.cpu.kernels.grouped_gemm import PackedProduct
from moec.targets.cpu.kernels.pack_experts import pack_table
from moec.targets.cpu.packed_weights import formats_of

E, WIDTH, INNER = 2, 48, 64
FORM = WeightFormat("int4", 32)


def stored(**changed: float) -> StoredWeight:
    """Scales in float32 that float16 holds, but for the last one if it is ``changed``."""
    generator = np.random.default_rng(0)
    actual = encode(generator.standard_normal((E, WIDTH, INNER)).astype(np.float32), FORM)
    assert actual.scale is not None
    scale = actual.scale.astype(np.float32)
    scale[-1, -1, -1] = changed.get("last", scale[-1, -1, -1])
    data, scales = (ir.Value(const_value=ir.tensor(array)) for array in (actual.data, scale))
    scales.dtype = ir.DataType.FLOAT
    return StoredWeight("weight", (WeightRun(0, E, FORM, data, scales, axis=1),))


def test_scales_that_float16_holds_are_packed_so():
    weight = stored()
    formats, _ = formats_of(weight, weight)
    assert [form.name for form in formats] == ["int4 (groups of 32, float16 scales)"]
    problem = PackedProduct(E, INNER, WIDTH, False, MACHINES["avx2"], formats)
    matrix = weight.encoded(1, transposed=False)
    packed = pack_table(problem, 1, [matrix], "scale")
    assert packed.dtype == np.float16
    tiles = packed.reshape(-1, INNER // 32, problem.columns).swapaxes(0, 1).reshape(INNER // 32, -1)
    assert matrix.scale is not None
    np.testing.assert_array_equal(tiles[:, :WIDTH].astype(np.float32), matrix.scale)


@pytest.mark.parametrize("last", [1 + 2.0**-11, 2.0**-25, 65520.0, np.nan])
def test_a_single_scale_that_it_does_not_hold_keeps_all_as_they_are(last):
    formats, _ = formats_of(stored(), stored(last=last))
    assert [form.scale for form in formats] == ["float32"]
