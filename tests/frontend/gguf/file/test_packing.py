"""Blocks that are read and packed again are the same bytes."""

import numpy as np
import onnx_ir as ir
import pytest

from moec.frontend.gguf.file.formats import QUANTISED
from moec.frontend.gguf.file.packing import kind_of, pack
from moec.ir.weights.format import WeightFormat

from ..gguf_files import random_blocks


@pytest.mark.parametrize("kind", QUANTISED)
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
    assert kind_of(WeightFormat("int4", 32), single) is None
    assert kind_of(WeightFormat("int4", 64), half) is None
    assert kind_of(WeightFormat("int4", 32, zero_points=True), half) is None
    assert kind_of(WeightFormat("float64"), None) is None
