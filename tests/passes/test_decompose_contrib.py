"""The effects of decompose-contrib on a whole graph; ``contrib`` tests single operators."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from moec.ir import contrib
from moec.ir.text import parse_model
from moec.passes import pipeline
from moec.passes.decompose_contrib import ATTRIBUTE_TYPES, ATTRIBUTES, DECOMPOSITIONS
from moec.passes.framework.base import Report

from .before_after import assert_shown, check

HEADER = '<ir_version: 10, opset_import: ["" : 24, "com.microsoft" : 1, "moec" : 1]>\ng '
SIGNATURE = "(float[B,T,4] x, float[B,T,4] s) => (float[B,T,4] y, float[B,T,4] z) <float[4] g = {1, 2, 3, 4}>"


def decomposed(text: str) -> tuple[ir.Model, Report]:
    model, report = parse_model(HEADER + text), Report()
    pipeline.run(model, pipeline.parse("decompose-contrib"), report, verify_each=True)
    return model, report


def test_outputs_of_the_graph_keep_their_names():
    remarks = check(
        "decompose-contrib",
        f"""{SIGNATURE} {{ y, "", "", z = com.microsoft.SkipSimplifiedLayerNormalization (x, s, g) }}""",
        f"""{SIGNATURE} {{
            z = Add (x, s)
            y = RMSNormalization <epsilon = 1e-12> (z, g) }}""",
    )
    assert not remarks


def test_names_that_are_taken_are_left_to_their_owners():
    model, _ = decomposed("""(float[T,4] x) => (float[T,4] y) <float[4] b = {1, 2, 3, 4}> {
        "y.Add" = Neg (x)
        y = com.microsoft.FastGelu ("y.Add", b)
    }""")
    assert [node.outputs[0].name for node in model.graph] == ["y.Add", "y.Add_2", "y"]


def test_other_operators_stay(rewrite):
    text, report = "(float[T,4] x) => (float[T,4] y) { z = Neg (x) y = com.microsoft.Unheard (z) }", Report()
    assert_shown(rewrite(text, "decompose-contrib", report=report), text)
    assert not report.remarks


ATTENTION = "(float[1,T,6] q, int32[1] last, int32 total) => (float[1,T,4] y) { y = com.microsoft.GroupQueryAttention "
STAYS = {
    "one of two outputs that have no equal": (
        "(float[1,T,8] x, float[8] g) => (float[1,T,8] y, float[1,T,1] m) "
        "{ y, m = com.microsoft.SkipSimplifiedLayerNormalization(x, x, g) }",
        "output 1 is used",
    ),
    "operand of unknown rank": (
        "(float[T,4] a, float[] b) => (float[] y) { y = com.microsoft.FusedMatMul <transB = 1> (a, b) }",
        "rank of B is not known",
    ),
    "weights that are inputs": (
        "(float[T,32] x, uint8[8,1,16] w, float[8] s) => (float[T,8] y) "
        "{ y = com.microsoft.MatMulNBits <K = 32, N = 8, bits = 4, block_size = 32> (x, w, s) }",
        "computed when the model runs",
    ),
    "weights of other widths": (
        "(float[T,32] x, uint8[8,1,12] w, float[8] s) => (float[T,8] y) "
        "{ y = com.microsoft.MatMulNBits <K = 32, N = 8, bits = 3, block_size = 32> (x, w, s) }",
        "3 bits; expected 2, 4 or 8",
    ),
    "a table that is gathered along another axis": (
        "(int64[T] ids) => (float[2,T] y) <uint8[2,4] t = {0, 0, 0, 0, 0, 0, 0, 0}, float[2] s = {1, 1}> "
        "{ y = com.microsoft.GatherBlockQuantized <gather_axis = 1, block_size = 16> (t, ids, s) }",
        "along another axis; expected gather_axis 0",
    ),
    "attention to what follows": (
        ATTENTION + '<num_heads = 2, kv_num_heads = 1, causal = 0> (q, "", "", "", "", last, total) }',
        "causal is 0; expected 1",
    ),
    "a cache of bytes": (
        "(float[1,T,8] q, int32[1] last, int32 total, float[1] scale) => (float[1,T,4] y) "
        "{ y = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1> "
        '(q, "", "", "", "", last, total, "", "", "", "", "", scale) }',
        "k_scale",
    ),
    "caches of another width than what rotates": (
        "(float[1,T,8] x, int64[1,T] at, float[9,4] c) => (float[1,T,8] y) "
        "{ y = com.microsoft.RotaryEmbedding <num_heads = 1, rotary_embedding_dim = 4> (x, at, c, c) }",
        "cos_cache has 4 columns; expected half of the 4",
    ),
    "an activation nobody knows": (
        "(float[T,4] x, float[T,2] r, float[2,3,4] a, float[2,4,3] b) => (float[T,4] y) "
        '{ y = com.microsoft.MoE <activation_type = "mish"> (x, r, a, "", b) }',
        "'mish'",
    ),
    "a limit of nothing, which onnxruntime clamps everything to": (
        "(float[T,4] x, float[T,2] r, float[2,6,4] a, float[2,4,3] b) => (float[T,4] y) "
        '{ y = com.microsoft.MoE <activation_type = "swiglu", swiglu_fusion = 1, swiglu_limit = 0.0> '
        '(x, r, a, "", b) }',
        "swiglu_limit is 0; expected it to be positive",
    ),
    "an activation that onnxruntime does not fuse": (
        '(float[T,4] a, float[4,2] b) => (float[T,2] y) { y = com.microsoft.FusedGemm <activation = "Gelu"> (a, b) }',
        "activation is 'Gelu'",
    ),
    "a layout that wants another input": (
        "(float[T,4] x, float[T,2] r, float[2,6,4] a, float[2,4,3] b) => (float[T,4] y) "
        '{ y = com.microsoft.MoE <activation_type = "swiglu", swiglu_fusion = 0> (x, r, a, "", b) }',
        "swiglu_fusion=0 does not fit fc3 being absent",
    ),
    "an attribute that is not known": (
        "(float[T,4] x) => (float[T,4] y) { y = com.microsoft.QuickGelu <beta = 2.0> (x) }",
        "attribute beta is not known; expected alpha",
    ),
    "an attribute of another type": (
        '(float[T,4] x) => (float[T,4] y) { y = com.microsoft.QuickGelu <alpha = "2"> (x) }',
        "attribute alpha is of type string; expected float",
    ),
    "an attribute of an operator that has none": (
        "(float[T,4] x) => (float[T,4] y) { y = com.microsoft.Gelu <alpha = 1.0> (x) }",
        "attribute alpha is not known; expected none",
    ),
    "a convolution of images": (
        "(float[1,4,T] x, float[4,1,3] w) => (float[1,4,T] y, float[1,4,2] s) "
        "{ y, s = com.microsoft.CausalConvWithState <ndim = 2> (x, w) }",
        "ndim is 2; expected 1",
    ),
}


def test_every_attribute_of_onnxruntime_is_known():
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    schemas = [schema for schema in get_all_operator_schema() if schema.domain == "com.microsoft"]
    actual = {schema.name: set(schema.attributes) for schema in schemas if schema.name in DECOMPOSITIONS}
    assert actual == {name: set(ATTRIBUTES.get(name, "").split()) for name in actual}
    for schema in (schema for schema in schemas if schema.name in DECOMPOSITIONS):
        for name, attribute in schema.attributes.items():
            assert str(attribute.type).rpartition(".")[2] == ATTRIBUTE_TYPES.get(name, ir.AttributeType.INT).name, name


@pytest.mark.parametrize("case", STAYS)
def test_what_has_no_equal_stays_and_is_reported(case):
    text, reason = STAYS[case]
    model, report = decomposed(text)
    assert [node.domain for node in model.graph] == ["com.microsoft"]
    (remark,) = report.remarks
    assert remark.severity == "warning" and reason in remark.message and "stays as it is" in remark.message


def test_a_compiler_says_why_it_stays():
    import moec

    text, reason = STAYS["attention to what follows"]
    with pytest.raises(moec.UnsupportedError, match=f"GroupQueryAttention.*{reason}"):
        moec.compile(onnx.parser.parse_model(HEADER + text))


def test_the_names_that_imports_know_are_those_that_are_spelled():
    assert DECOMPOSITIONS.keys() == contrib.OPERATOR_NAMES
