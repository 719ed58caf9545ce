"""The pass that writes quantised layers of experts as onnxruntime's operator QMoE, which onnxruntime runs."""

from __future__ import annotations

import numpy as np
import pytest

from moec.ir.contrib_quantized import unpack
from moec.passes.export.packed_experts import pack

from ...products import thinned
from .test_use_moe import E, operators

D, F = 64, 32
LAYERS = {
    "gate_up": f"float[{E},{2 * F},{D}] up, float[{E},{D},{F}] down",
    "none": f"float[{E},{F},{D}] up, float[{E},{D},{F}] down",
    "biased": f"float[{E},{D},{2 * F}] up, float[{E},{F},{D}] down, float[{E},{2 * F}] b, float[{E},{D}] c",
}
INTERLEAVED = 'gate_layout = "interleaved", up_transposed = 1, down_transposed = 1, limit = 2.0, alpha = 1.702'


def layer(kind: str = "gate_up", experts: str = "", weights: str = "up, down") -> str:
    return f"""(float[T,{D}] x, float[T,{E}] logits) => (float[T,{D}] y) <{LAYERS[kind]}> {{
       w, e = moec.Route <k = 2, score = "sigmoid"> (logits)
       y = moec.Experts <{experts}> (x, w, e, {weights})
    }}""".replace("<>", "")


def cases(normal):
    return [{"x": normal(tokens, D), "logits": normal(tokens, E)} for tokens in (9, 1, 0)]


def qmoe(model):
    (node,) = (node for node in model.graph if node.domain)
    assert node.op_type == "QMoE"
    return {name: attribute.value for name, attribute in node.attributes.items()}, node


FORMATS = [("int4", 16), ("int4", 32), ("int4", 0), ("int8", 0), ("int3", 32), ("int2", 32), ("int8", 16), ("int6", 32)]
"""Weights of 8 bits in blocks come with rows that are rounded so."""


@thinned(("name", "group"), FORMATS, 3)
@pytest.mark.parametrize("zero_points", ["false", "true"])
@thinned(
    ("kind", "experts", "weights"),
    [
        ("biased", INTERLEAVED, "up, down, , b, c"),
        ("none", 'gate_layout = "none", activation = "relu", hidden_sizes = [16, 8, 32, 16, 5]', "up, down"),
        ("gate_up", "", "up, down"),
    ],
    2,
)
def test_formats(exported, normal, name, group, zero_points, kind, experts, weights):
    rounds = name in ("int8", "int6") and group
    passes = f"quantize-experts{{format={name},group={group},zero_points={zero_points}}}" + (
        "" if rounds else ",keep-rows"
    )
    model, report = exported(
        layer(kind, experts, weights), *cases(normal), passes=passes, tolerance=3e-2 if rounds else 1e-5
    )
    attributes, node = qmoe(model)
    bits = {"int4": 4, "int3": 4, "int2": 2}.get(name, 8)
    assert (attributes["expert_weight_bits"], attributes.get("block_size", 0)) == (bits, group)
    assert (len(node.inputs) > 11) == (zero_points == "true")
    assert not report.remarks


def test_rows_are_rounded_where_the_node_rounds_them_so(exported, normal):
    model, report = exported(layer(), *cases(normal), passes="quantize-experts{format=int4,group=32}", tolerance=3e-2)
    assert qmoe(model)[0]["accuracy_level"] == 4 and not report.remarks


def test_rows_are_kept_where_the_operator_has_other_groups(exported, normal):
    passes = "quantize-experts{format=int8,activation_group=32}"
    model, report = exported(layer(), *cases(normal), passes=passes, tolerance=3e-2)
    assert "accuracy_level" not in qmoe(model)[0]
    assert [remark.message for remark in report.remarks] == ["its rows are kept in float32, not in the arithmetic int8"]


def test_groups_that_differ_are_told_in_common_blocks(exported, normal):
    passes = "quantize-experts{format=int4,group=32,experts=0-1},quantize-experts{format=int3,group=64},keep-rows"
    model, _ = exported(layer(), *cases(normal), passes=passes)
    assert qmoe(model)[0]["block_size"] == 32


@pytest.mark.parametrize(
    ("passes", "reason"),
    [
        ("quantize-experts{format=nvfp4}", "its weights are stored as nvfp4, which QMoE does not have"),
        ("quantize-experts{format=mxfp4}", "its weights are stored as mxfp4, which QMoE does not have"),
        ("quantize-experts{format=int4,group=8}", "its groups are no multiples of 16 inputs"),
        ("quantize-experts{format=int8,down=int4}", "its weights are stored as int4, int8, and QMoE has one number"),
        ("quantize-experts{format=int8,group=32}", "its rows are not rounded, and QMoE rounds those of weights of 8"),
        ("quantize-experts{format=int8,experts=0-1}", "its weights are stored as float32, which QMoE"),
    ],
)
def test_what_the_operator_does_not_have_stays_a_graph(exported, normal, passes, reason):
    model, report = exported(layer(), *cases(normal), passes=f"{passes},keep-rows")
    assert operators(model) == []
    assert any(reason in remark.message for remark in report.remarks if remark.pass_name == "use-qmoe")


def test_floats_are_left_alone(exported, normal):
    model, report = exported(layer(), *cases(normal))
    assert operators(model) == ["MoE"] and not report.remarks


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("length", [8, 5])
def test_packed_numbers_are_unpacked_again(bits, length):
    numbers = np.random.default_rng(bits).integers(0, 2**bits, (3, length))
    np.testing.assert_array_equal(unpack(pack(numbers, bits), bits)[:, :length], numbers)
