"""The pass that writes quantised dense products as onnxruntime's operator MatMulNBits, which onnxruntime runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from moec.frontend.gguf.file.reader import BLOCKS, GgufFile, GgufTensor
from moec.frontend.gguf.graph.builder import Builder
from moec.ir.dialect import LinearSpec

from ...frontend.gguf.gguf_files import random_blocks
from ...products import thinned
from ..before_after import model_of
from .test_use_moe import operators

N = 6


WIDER = {
    name: [f"its weights of {name[-1]} bits are stored in {bits}"]
    for name, bits in {"int2": 4, "int3": 4, "int5": 8, "int6": 8}.items()
}
"""The notes about formats that take more bits than they have."""


def widths(report) -> list[str]:
    return [remark.message for remark in report.remarks]


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
    halves = 1 + (name in ("int8", "int6"))
    assert operators(model) == ["MatMulNBits"] * halves and widths(report) == WIDER.get(name, [])


@pytest.mark.parametrize("form", ["int4,group=32", "int8,group=32", "int8", "int2,group=32,zero_points=true"])
def test_rows_are_rounded_where_the_node_rounds_them(exported, normal, form):
    passes = f"quantize-linears{{format={form}}}"
    model, report = exported(product(64), {"x": normal(2, 3, 64)}, passes=passes, tolerance=2e-2)
    (node,) = (node for node in model.graph if node.domain)
    assert node.attributes.get_int("accuracy_level") == 4 and not report.remarks


def test_rows_are_kept_where_blocks_are_larger_than_the_groups_that_the_node_rounds(exported, normal):
    text = f"""(float[T,64] x) => (float[T,{N}] y) <int8[{N},64] w, float[{N},2] scale> {{
        d = DequantizeLinear <axis = 1, block_size = 32, output_dtype = 1> (w, scale)
        y = moec.Linear <arithmetic = "int8", activation_group = 8> (x, d)
    }}"""
    model, report = exported(text, {"x": normal(3, 64)}, tolerance=2e-2)
    nodes, (remark,) = [node for node in model.graph if node.domain], report.remarks
    assert not any("accuracy_level" in node.attributes for node in nodes) and "not rounded to int8" in remark.message


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


def product_of(kind: str, K: int) -> ir.Model:
    """A product whose weight is stored as blocks of a type of GGUF."""
    size = next(size for name, size, _ in BLOCKS.values() if name == kind)
    blocks = random_blocks(kind, N * K // size, 0.05).reshape(N, K // size, -1)
    metadata = {"general.architecture": "t", "t.block_count": 1, "t.embedding_length": K}
    file = GgufFile(Path("model.gguf"), metadata, {"w": GgufTensor("w", kind, (N, K), blocks)})
    builder = Builder(file, with_cache=False)
    write = builder.write
    write.graph.inputs.clear()
    x = write.input("x", ir.DataType.FLOAT, ("B", "T", K))
    write.output(write.moec("Linear", "y", LinearSpec(), x=x, weight=builder.matrix("w", N, K))[0], "y")
    return ir.Model(write.graph, ir_version=10)


@pytest.mark.parametrize(("kind", "count"), [("Q4_1", 1), ("Q4_K", 1), ("Q5_K", 2), ("Q2_K", 1), ("Q6_K", 2)])
def test_minima_and_scales_of_two_levels(exported, normal, kind, count):
    model, report = exported(product_of(kind, 512), {"x": normal(2, 3, 512)}, {"x": normal(1, 0, 512)})
    minima = ["FusedMatMul"] if kind == "Q4_1" else []
    assert operators(model) == ["MatMulNBits"] * count + minima and widths(report) == WIDER.get(f"int{kind[1]}", [])
    assert ("Sub" in [node.op_type for node in model.graph]) == (kind != "Q6_K")


def test_floats_are_left_alone(exported, normal):
    model, report = exported(product(64), {"x": normal(2, 3, 64)})
    assert operators(model) == [] and not report.remarks


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize(("axis", "shared"), [(0, True), (1, False)])
def test_rows_of_the_same_table_are_picked_from_the_halves(exported, normal, dtype, axis, shared):
    """The table is then in the file once. Columns need it as it is."""
    zeros = ", uint8[6,2] zeros" if dtype == "uint8" else ""
    text = f"""(float[B,T,40] x, int64[S] ids) => (float[B,T,6] y, {dtype}[{"S,40" if axis == 0 else "6,S"}] rows)
       <{dtype}[6,40] table, float[6,2] scale{zeros}> {{
       w = DequantizeLinear <axis = 1, block_size = 32, output_dtype = 1> (table, scale{zeros and ", zeros"})
       y = moec.Linear (x, w)
       rows = Gather <axis = {axis}> (table, ids)
    }}"""
    model, random = model_of(text), np.random.default_rng(0)
    for name, low, high in (("table", -128, 128), ("zeros", 0, 256)):
        if name in model.graph.initializers:
            value, offset = model.graph.initializers[name], 128 if dtype == "uint8" and name == "table" else 0
            kind = value.dtype.numpy()
            value.const_value = ir.tensor(
                random.integers(low + offset, high + offset, value.shape.numpy()).astype(kind)
            )
    cases = [{"x": normal(2, 3, 40), "ids": np.array(ids, np.int64)} for ids in ([5, 0, -1, 5], [])]
    model, _ = exported(model, *cases)
    assert operators(model) == ["MatMulNBits"] * 2 and ("table" not in model.graph.initializers) == shared
