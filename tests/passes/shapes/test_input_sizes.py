"""Sizes of inputs that follow from other sizes, and generated inputs that have them."""

from __future__ import annotations

import onnx
import pytest

import moec
from moec.checking.sampling import outside_cases, random_inputs, size_cases
from moec.common.errors import MoecError
from moec.common.specs import TensorSpec
from moec.passes.shapes.input_sizes import input_sizes
from moec.tools.verify import verify

HEADER = '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>\ng '
CONSTANTS = """<int64 zero = {0}, int64 one = {1}, int64[1] last = {-1}>"""
POSITIONS = "s = Shape (cache) p = Gather (s, one) t = Shape (x) n = Gather (t, one) total = Add (p, n)"


def sizes_of(text: str) -> dict[str, str]:
    return input_sizes(moec.import_model(onnx.parser.parse_model(HEADER + text)))


def attention(cache: str = "P", mask: str = "T") -> onnx.ModelProto:
    """Grouped queries after a cache, with a mask of ones as in models of onnxruntime-genai."""
    text = f"""(float[B,S,32] q, float[B,1,{cache},h] past_keys, float[B,1,{cache},h] past_values, int64[B,{mask}] mask)
        => (float[B,S,16] y, float[B,1,total,h] keys, float[B,1,total,h] values)
        <int64[1] one_axis = {{1}}, int64 one = {{1}}> {{
        lengths = ReduceSum <keepdims = 0> (mask, one_axis) before = Sub (lengths, one) last = Cast <to = 6> (before)
        size = Shape (mask) length = Gather <axis = 0> (size, one) all = Cast <to = 6> (length)
        y, keys, values = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1>
            (q, "", "", past_keys, past_values, last, all) }}"""
    return onnx.parser.parse_model(HEADER + text)


def test_a_mask_is_as_long_as_cache_and_query():
    assert input_sizes(moec.import_model(attention())) == {"T": "P + S"}


@pytest.mark.parametrize(("cache", "mask"), [("8", "T"), ("P", "P"), ("P", "S")])
def test_sizes_that_are_fixed_or_the_same_follow_from_no_other(cache, mask):
    expected = {"T": "8 + S"} if cache == "8" else {}
    assert input_sizes(moec.import_model(attention(cache, mask))) == expected


GATHERED = f"""(float[B,S,4] x, float[B,P,4] cache, float[M,T] mask) => (float[B,S,4] y, float[] z) {CONSTANTS} {{
    {POSITIONS} everywhere = Range (START, total, one) z = Gather <axis = 1> (mask, everywhere) y = Neg (x) }}"""


def test_an_axis_read_everywhere_is_as_long():
    assert sizes_of(GATHERED.replace("START", "zero")) == {"T": "P + S"}


def test_an_axis_read_in_part_may_have_any_length():
    assert sizes_of(GATHERED.replace("START", "one")) == {}


def test_positions_side_by_side():
    text = f"""(float[B,S,4] x, float[B,P,4] cache, float[M,T] mask) => (float[B,S,4] y, float[] z) {CONSTANTS} {{
        {POSITIONS} b = Gather (s, zero) rows = Range (zero, b, one) columns = Range (zero, total, one)
        row = Unsqueeze (rows, last) column = Unsqueeze (columns, last) pairs_shape = Shape (column)
        one_row = Expand (row, pairs_shape) at = Concat <axis = -1> (one_row, column)
        z = GatherND (mask, at) y = Neg (x) }}"""
    assert sizes_of(text) == {"M": "B", "T": "P + S"}


SPECS = [
    TensorSpec("ids", "int64", ("B", "S")),
    TensorSpec("mask", "int64", ("B", "T")),
    TensorSpec("cache", "float32", ("B", 2, "P", 4)),
]


def test_generated_sizes_agree():
    """One token after three, three after sixteen, and a prompt of sixteen."""
    cases = size_cases(SPECS, dependent={"T": "P + S"})
    assert [(case["B"], case["S"], case["P"], case["T"]) for case in cases] == [
        (1, 1, 3, 4),
        (3, 3, 16, 19),
        (2, 16, 0, 16),
    ]
    shapes = {name: array.shape for name, array in random_inputs(SPECS, cases[0], {}).items()}
    assert shapes == {"ids": (1, 1), "mask": (1, 4), "cache": (1, 2, 3, 4)}


def test_guards_rule_sizes_out():
    cases = size_cases(SPECS, dependent={"T": "P + S"}, guards=["S % 4 == 0", "T <= 30", "B != 1"])
    assert [(case["B"], case["S"], case["P"], case["T"]) for case in cases] == [
        (2, 4, 3, 7),
        (3, 4, 16, 20),
        (2, 16, 0, 16),
    ]
    outside = outside_cases(cases[1], ["S % 4 == 0", "T <= 30", "S >= 0"], {"T": "P + S"})
    assert outside["S % 4 == 0"] == {**cases[1], "S": 3, "T": 19}
    assert outside["T <= 30"]["T"] > 30 and "S >= 0" not in outside


def test_guards_that_rule_everything_out_are_said():
    with pytest.raises(MoecError, match="no sizes found with S < 0; give inputs of such sizes"):
        size_cases(SPECS, guards=["S < 0"])


def test_sizes_of_other_names_are_the_same_size():
    cases = size_cases(SPECS, dependent={"T": "S"})
    assert [(case["S"], case["P"], case["T"]) for case in cases] == [(1, 1, 1), (3, 3, 3), (16, 16, 16)]


def test_models_with_a_cache_are_verified(tmp_path):
    """The width of the cache has a name in the model, but only one value that fits."""
    onnx.save(attention(), tmp_path / "model.onnx")
    compiled = moec.compile(tmp_path / "model.onnx")
    assert compiled.interface.sizes == compiled.describe()["input_sizes"] == {"T": "P + S"}
    verification = verify(tmp_path / "model.onnx", compiled)
    assert verification.matches and not verification.failures and not verification.notes
    assert [(case.inputs["q"], case.inputs["past_keys"]) for case in verification.cases] == [
        ((1, 1, 32), (1, 1, 1, 8)),
        ((3, 1, 32), (3, 1, 3, 8)),
        ((1, 3, 32), (1, 1, 16, 8)),
        ((2, 16, 32), (2, 1, 0, 8)),
        ((1, 300, 32), (1, 1, 0, 8)),
        ((3, 4, 32), (3, 1, 0, 8)),
        ((4, 3, 32), (4, 1, 0, 8)),
    ]
