"""Blocks that are read and packed again are the same bytes."""

import numpy as np
import onnx_ir as ir
import pytest

from moec.frontend.gguf.file.formats import QUANTISED
from moec.frontend.gguf.file.packing import kind_of, pack, with_minima
from moec.ir.weights.encode import encode
from moec.ir.weights.format import WeightFormat

from ..gguf_files import random_blocks


@pytest.mark.parametrize("kind", [kind for kind, row in QUANTISED.items() if kind_of(row.form, row.scale) == kind])
def test_blocks_become_tables_and_the_same_blocks(kind: str) -> None:
    blocks = random_blocks(kind, 64)
    tables = {name: read() for name, read in QUANTISED[kind].read(blocks).items()}
    np.testing.assert_array_equal(pack(kind, tables), blocks.reshape(-1))


def test_floats_keep_their_bits() -> None:
    numbers = np.array([[1.5, -0.0], [np.nan, np.inf]], np.float16)
    assert pack("F16", {"data": numbers}).tobytes() == numbers.tobytes()


def test_a_format_has_one_kind_or_none() -> None:
    half, single = ir.DataType.FLOAT16, ir.DataType.FLOAT
    assert kind_of(WeightFormat("int4", 32), half) == "Q4_0"
    assert kind_of(WeightFormat("mxfp4", 32), ir.DataType.FLOAT8E8M0) == "MXFP4"
    assert kind_of(WeightFormat("bfloat16"), None) == "BF16"
    assert kind_of(WeightFormat("nvfp4", 16), single) is None
    assert kind_of(WeightFormat("int4", 32), single) is None
    assert kind_of(WeightFormat("int8", 32), half) == "Q8_0"
    assert kind_of(WeightFormat("int8", 32, super_group=256), half) is None
    assert kind_of(WeightFormat("iq4", 32, super_group=256), half) == "IQ4_XS"
    assert kind_of(WeightFormat("iq4", 64), half) is None
    assert kind_of(WeightFormat("int4", 64), half) is None
    assert kind_of(WeightFormat("int4", 32, zero_points=True), half) == "Q4_1"
    assert kind_of(WeightFormat("int8", 32, zero_points=True), half) is None
    assert kind_of(WeightFormat("int4", zero_points=True), half) is None
    assert kind_of(WeightFormat("float64"), None) is None


def test_zero_points_become_minima() -> None:
    weight = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    encoded = encode(weight, WeightFormat("int5", 32, zero_points=True))
    assert encoded.scale is not None and encoded.zero_point is not None
    tables = with_minima({"data": encoded.data, "scale": encoded.scale, "zero_point": encoded.zero_point})
    assert tables.keys() == {"data", "scale", "minimum"} and with_minima(tables) is tables
    exact = encoded.scale.astype(np.float64) * encoded.zero_point.astype(np.float64)
    assert tables["minimum"].dtype == np.float16 and exact.all()
    assert (np.abs(tables["minimum"] - exact) <= np.abs(exact) / 2048).all()
    with pytest.raises(ValueError, match="beyond the range of float16"):
        with_minima({**tables, "scale": np.full((1, 1), 60000, np.float16), "zero_point": np.full((1, 1), 2)})
