from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

import moec
from moec.common.errors import MoecError
from moec.passes import pipeline
from moec.tools.verify import verify

from ..products import thinned
from .before_after import check, model_of

HEAD = '<ir_version: 10, opset_import: ["" : 24]>\nagraph '


def test_what_is_new_is_rounded() -> None:
    signature = "(float[B,S,4] new, float[B,P,4] past) => (float[B,R,4] present)"
    check(
        "infer-shapes,hold-cache,cast-states{dtype=bf16}",
        f"{signature} {{\n present = Concat <axis = 1> (past, new)\n}}",
        f"""{signature} {{
           past_bfloat16 = Cast <to = 16> (past)
           past_rounded = Cast <to = 1> (past_bfloat16)
           new_bfloat16 = Cast <to = 16> (new)
           new_rounded = Cast <to = 1> (new_bfloat16)
           present = Concat <axis = 1> (past_rounded, new_rounded)
        }}""",
    )


@pytest.mark.parametrize(("first", "second"), [("fp16", "int8"), ("bf16", "bf16"), ("fp16", "bf16")])
def test_one_rounding_takes_the_place_of_a_finer_one(first: str, second: str) -> None:
    text = "(float[B,S,4] new, float[B,P,4] past) => (float[B,R,4] present) { present = Concat <axis = 1> (past, new) }"
    once, twice = model_of(text), model_of(text)
    pipeline.run(once, pipeline.parse(f"infer-shapes,hold-cache,cast-states{{dtype={second}}}"))
    passes = f"infer-shapes,hold-cache,cast-states{{dtype={first}}},cast-states{{dtype={second}}}"
    pipeline.run(twice, pipeline.parse(passes), verify_each=True)
    kinds = [[(node.op_type, str(node.attributes.get("to"))) for node in model.graph] for model in (once, twice)]
    assert (kinds[0] == kinds[1]) == ((first, second) != ("fp16", "bf16"))


def test_keys_and_values_of_attention() -> None:
    signature = (
        "(float[B,2,S,8] q, float[B,2,S,8] k, float[B,2,S,8] v, float[B,2,P,8] pk, float[B,2,P,8] pv) => "
        "(float[B,2,S,8] y, float[B,2,R,8] nk, float[B,2,R,8] nv)"
    )
    check(
        "infer-shapes,hold-cache,cast-states{dtype=fp16}",
        f'{signature} {{\n y, nk, nv = Attention (q, k, v, "", pk, pv)\n}}',
        f"""{signature} {{
           pk_float16 = Cast <to = 10> (pk)
           pk_rounded = Cast <to = 1> (pk_float16)
           k_float16 = Cast <to = 10> (k)
           k_rounded = Cast <to = 1> (k_float16)
           pv_float16 = Cast <to = 10> (pv)
           pv_rounded = Cast <to = 1> (pv_float16)
           v_float16 = Cast <to = 10> (v)
           v_rounded = Cast <to = 1> (v_float16)
           y, nk, nv = Attention (q, k_rounded, v_rounded, , pk_rounded, pv_rounded)
        }}""",
    )


def test_states_that_are_replaced_stay_as_they_are() -> None:
    text = """(float[B,S,4] x, float[B,4] kept) => (float[B,4] next) <int64[1] one = {1}, float half = {0.5}> {
       sum = ReduceSum <keepdims = 0> (x, one)
       decayed = Mul (kept, half)
       next = Add (decayed, sum)
    }"""
    remarks = check("infer-shapes,hold-cache,cast-states{dtype=fp16}", text, text)
    (remark,) = remarks
    assert remark.subject == "next" and "not cast: expected float32 appended to a cache" in remark.message


def test_a_model_without_states_is_told_of() -> None:
    text = "(float[B,4] x) => (float[B,4] y) {\n y = Neg (x)\n}"
    remarks = check("hold-cache,cast-states{dtype=fp16}", text, text)
    assert "nothing to cast: hold-cache found no state" in remarks[0].message
    with pytest.raises(MoecError, match="dtype"):
        moec.compile(onnx.parser.parse_model(HEAD + text), passes="O0,cast-states{dtype=int4}")


def test_rows_become_whole_numbers_times_a_scale() -> None:
    signature = "(float[B,S,4] new, float[B,P,4] past) => (float[B,R,4] present)"
    check(
        "infer-shapes,hold-cache,cast-states{dtype=int8}",
        f"{signature} {{\n present = Concat <axis = 1> (past, new)\n}}",
        f"""{signature} {{
           past_rounded = moec.RoundRows (past)
           new_rounded = moec.RoundRows (new)
           present = Concat <axis = 1> (past_rounded, new_rounded)
        }}""",
    )


@pytest.mark.parametrize(
    ("new", "past", "present", "axis"),
    [
        ("B,4,S", "B,4,P", "B,4,R", 2),
        ("B,S,2,4", "B,P,2,4", "B,R,2,4", 1),
        ("B,S,D", "B,P,D", "B,R,D", 1),
    ],
    ids=["the rows grow", "matrices in rows", "rows of any size"],
)
def test_only_rows_of_a_matrix_become_int8(new: str, past: str, present: str, axis: int) -> None:
    text = f"""(float[{new}] new, float[{past}] past) => (float[{present}] present) {{
       present = Concat <axis = {axis}> (past, new)
    }}"""
    (remark,) = check("infer-shapes,hold-cache,cast-states{dtype=int8}", text, text)
    assert remark.subject == "present" and "expected rows of a fixed size" in remark.message


@thinned("dtype", ["int8", "fp16", "bf16"], 3)
def test_programs_store_fewer_bytes(dtype) -> None:
    text = """(float[B,2,S,16] q, float[B,2,S,16] k, float[B,2,P,16] pk, float[B,2,P,16] pv) =>
        (float[B,2,S,16] y, float[B,2,N,16] nk, float[B,2,N,16] nv, int64[1] length) {
       y, nk, nv = Attention <is_causal = 1> (q, k, q, "", pk, pv)
       length = Shape <start = 2, end = 3> (pk)
    }"""
    graph = onnx.parser.parse_model(HEAD + text)
    rounding, exact = moec.compile(graph, passes=f"O2,cast-states{{dtype={dtype}}}"), moec.compile(graph)
    stored = {"fp16": "float16", "bf16": "bfloat16", "int8": "int8"}[dtype]
    assert [state.dtype for state in rounding._executor.held] == 2 * [stored]
    random = np.random.default_rng(0)
    shapes = {"q": (1, 2, 3, 16), "k": (1, 2, 3, 16), "pk": (1, 2, 40, 16), "pv": (1, 2, 40, 16)}
    values = {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    actual, expected = rounding.run(values), exact.run(values)
    assert actual["length"] == [40]
    bound = {"fp16": 1 / 2048, "bf16": 1 / 256, "int8": 1 / 253}[dtype]
    for name in ("nk", "nv"):
        assert actual[name].dtype == np.float32
        relative_to = np.abs(expected[name]).max(axis=-1, keepdims=True) if dtype == "int8" else np.abs(expected[name])
        assert (np.abs(actual[name] - expected[name]) <= bound * relative_to + 1e-7).all()
        assert (actual[name] != expected[name]).any()
    np.testing.assert_allclose(actual["y"], expected["y"], rtol=0, atol=8 * bound)


def test_what_the_model_itself_rounds_leaves_the_past_alone() -> None:
    """Only added elements have 16 bits: a past with more bits is returned unchanged."""
    text = """(float16[B,S,4] new, float[B,P,4] past) => (float[B,R,4] present, float[B,R,4] y) {
       wide = Cast <to = 1> (new)
       present = Concat <axis = 1> (past, wide)
       y = Neg (present)
    }"""
    compiled = moec.compile(onnx.parser.parse_model(HEAD + text))
    assert [state.dtype for state in compiled._executor.held] == ["float32"]
    past = np.full((1, 3, 4), 1 / 3, np.float32)
    actual = compiled.run({"new": np.ones((1, 2, 4), np.float16), "past": past})
    np.testing.assert_array_equal(actual["present"][:, :3], past)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_programs_round_the_past_as_the_graph_does(dtype, tmp_path) -> None:
    text = """(float[B,S,4] new, float[B,P,4] past) => (float[B,R,4] present, float[B,R,4] y) {
       present = Concat <axis = 1> (past, new)
       y = Neg (present)
    }"""
    graph = onnx.parser.parse_model(HEAD + text)
    compiled = moec.compile(graph, passes=f"O2,cast-states{{dtype={dtype}}}")
    assert [state.dtype for state in compiled._executor.held] == [{"bf16": "bfloat16"}.get(dtype, dtype)]
    onnx.save(graph, tmp_path / "model.onnx")
    assert verify(tmp_path / "model.onnx", compiled).matches
