"""The pass that writes quantised dense products as onnxruntime's operator MatMulNBits, which onnxruntime runs."""

from __future__ import annotations

import numpy as np
import pytest

from ...products import thinned
from .test_use_moe import operators

N = 6


def product(K: int, attributes: str = "", dtype: str = "float") -> str:
    shape = f"{K},{N}" if "transposed" in attributes else f"{N},{K}"
    node = f"y = moec.Linear <{attributes}> (x, w, b)".replace("<>", "")
    text = f"(float[B,T,{K}] x) => (float[B,T,{N}] y) <float[{shape}] w, float[{N}] b> {{ {node} }}"
    return text.replace("float[", f"{dtype}[")


FORMATS = [("int4", 16), ("int4", 32), ("int4", 0), ("int8", 0), ("int8", 32), ("int3", 32), ("int2", 32), ("int6", 64)]


@thinned(("name", "group"), FORMATS, 3)
@pytest.mark.parametrize("zero_points", ["false", "true"])
@thinned(("K", "attributes"), [(40, "transposed = 1"), (64, ""), (300, 'activation = "silu"')], 2)
def test_formats(exported, normal, name, group, zero_points, K, attributes):
    """Also of rows whose last block is not full."""
    passes = f"quantize-linears{{format={name},group={group},zero_points={zero_points}}},keep-rows"
    model, report = exported(product(K, attributes), {"x": normal(2, 3, K)}, {"x": normal(1, 0, K)}, passes=passes)
    assert operators(model) == ["MatMulNBits"] and not report.remarks


def test_rows_are_rounded_where_the_node_rounds_them_so(exported, normal):
    passes = "quantize-linears{format=int4,group=32}"
    model, report = exported(product(64), {"x": normal(2, 3, 64)}, passes=passes, tolerance=2e-2)
    (node,) = (node for node in model.graph if node.domain)
    assert node.attributes.get_int("accuracy_level") == 4 and not report.remarks


def test_numbers_of_16_bits(exported, normal):
    text, passes = product(64, dtype="float16"), "quantize-linears{format=int4,group=32},keep-rows"
    model, _ = exported(text, {"x": normal(2, 3, 64).astype(np.float16)}, passes=passes, tolerance=2e-3)
    assert operators(model) == ["MatMulNBits"]


@pytest.mark.parametrize(("form", "reason"), [("int4,group=8", "groups of 8"), ("fp8", "stored as fp8")])
def test_other_formats_stay_and_are_reported(exported, normal, form, reason):
    passes = f"quantize-linears{{format={form}}},keep-rows"
    model, report = exported(product(64), {"x": normal(2, 3, 64)}, passes=passes)
    (remark,) = report.remarks
    assert operators(model) == [] and reason in remark.message


def test_floats_are_left_alone(exported, normal):
    model, report = exported(product(64), {"x": normal(2, 3, 64)})
    assert operators(model) == [] and not report.remarks
