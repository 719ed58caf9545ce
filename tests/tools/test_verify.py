"""Comparison of outputs, and its references."""

from __future__ import annotations

import json
import pathlib

import ml_dtypes
import numpy as np
import onnx
import pytest
import rich.console

import moec
from moec.checking.comparison import TOLERANCES, compare
from moec.common.errors import InputError, MoecError
from moec.frontend.onnx.conditions import KEY
from moec.inspect import tables
from moec.tools.verify import ROUNDED_TOLERANCES, Case, Verification, verify


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_largest_differences_are_reported():
    difference = compare("y", floats(1.5, 8), floats(1, 10), tolerance=0.2)
    assert (difference.absolute, difference.relative) == (2.0, 0.5)
    assert difference.matches  # 2 is within 0.2 of the largest expected magnitude, 10
    assert not compare("y", floats(1.5, 8), floats(1, 10), tolerance=0.19).matches


def test_small_values_are_compared_absolutely():
    assert compare("y", floats(1e-6), floats(2e-6), tolerance=1e-5).matches
    assert compare("y", floats(1e-6), floats(0), tolerance=1e-5).relative == np.inf


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_must_be_the_same(value):
    assert compare("y", floats(value, 1), floats(value, 1), tolerance=0).matches
    assert not compare("y", floats(value, 1), floats(1, 1), tolerance=1e9).matches
    assert not compare("y", floats(1, 1), floats(value, 1), tolerance=1e9).matches


def test_integers_must_be_equal():
    assert compare("y", np.array([3]), np.array([3]), tolerance=1).matches
    assert not compare("y", np.array([3]), np.array([4]), tolerance=9).matches


def test_shape_and_type_must_be_equal():
    assert compare("y", floats(), floats(), tolerance=0).matches
    shorter = compare("y", floats(1), floats(1, 2), tolerance=1)
    assert (shorter.matches, shorter.note) == (False, "is float32[1]; expected float32[2]")
    assert not compare("y", floats(1), np.array([1.0]), tolerance=1).matches


def test_half_precision_is_compared_in_full():
    single = np.array([1], ml_dtypes.bfloat16)
    assert compare("y", single + single, single, tolerance=0.5).absolute == 1.0


def test_a_verification_matches_when_every_case_that_ran_does():
    good, bad = compare("y", floats(1), floats(1), 0), compare("y", floats(1), floats(2), 0)
    not_run = Case({}, [], "onnxruntime cannot")
    assert Verification(0, [Case({}, [good]), not_run]).matches
    assert Verification(0, [Case({}, [good]), not_run]).failures == ["onnxruntime cannot"]
    assert not Verification(0, [Case({}, [good]), Case({}, [good, bad])]).matches


def test_narrower_floats_are_given_more_room():
    assert TOLERANCES["float32"] < TOLERANCES["float16"] < TOLERANCES["bfloat16"]


def test_the_norm_is_a_share_of_what_is_expected():
    expected = np.ones(100, np.float32)
    actual = expected.copy()
    actual[7] = 2  # one element differs by its own size
    assert compare("y", actual, expected, 1).norm == pytest.approx(0.1)
    assert compare("y", expected, expected, 1).norm == 0
    assert compare("y", floats(1), floats(0), 1).norm == np.inf
    assert np.isnan(compare("y", floats(np.nan, 1), floats(1, 1), 1).norm)


def test_rounding_arithmetic_is_given_more_room():
    assert ROUNDED_TOLERANCES["float32"] == TOLERANCES["float32"] < ROUNDED_TOLERANCES["int8"]


@pytest.fixture
def narrow(tmp_path: pathlib.Path) -> pathlib.Path:
    """Make a model with an operator that onnxruntime lacks in this type."""
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (bfloat16[n] x, bool[n] c) => (bfloat16[n] y, bfloat16[n] z) { z = Neg (x) y = Where (c, x, z) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_what_onnxruntime_lacks_the_reference_interpreter_computes(narrow):
    verification = verify(narrow, moec.compile(narrow))
    assert verification.matches and not verification.failures
    (note,) = verification.notes
    assert "onnxruntime itself cannot load the model" in note and "reference interpreter" in note
    assert shown(verification).startswith("Compared with the reference interpreter")


def test_the_reference_interpreter_can_find_a_difference(narrow, tmp_path):
    other = onnx.load(narrow)
    other.graph.node[0].op_type = "Abs"
    onnx.save(other, tmp_path / "other.onnx")
    assert not verify(tmp_path / "other.onnx", moec.compile(narrow)).matches


def test_inputs_that_nothing_can_run_are_refused_in_the_words_of_moec(narrow):
    verification = verify(narrow, moec.compile(narrow), {"x": np.ones(3, ml_dtypes.bfloat16)})
    assert verification.failures == ["input 'c' is missing; expected: x bfloat16[n], c bool[n]"]
    assert "NOT RUN" in shown(verification)


def shown(verification: Verification) -> str:
    console = rich.console.Console(width=200)
    with console.capture() as capture:
        console.print(tables.verification_table(verification.as_data()))
    return capture.get()


def test_sizes_of_inputs_are_shown_once_for_each_case():
    cases = [Case({"x": (1, size)}, [compare(name, floats(1), floats(1), 0) for name in "ab"]) for size in (2, 3)]
    text = shown(Verification(0, cases))
    assert text.count("x[1, 2]") == text.count("x[1, 3]") == 1
    assert text.startswith("Compared with onnxruntime") and "interpreter" not in text
    noted = [cases[0], Case({}, cases[1].differences, note="onnxruntime cannot")]
    assert "onnxruntime, or the reference interpreter where it fails" in shown(Verification(0, noted))


@pytest.fixture
def guarded(tmp_path: pathlib.Path) -> pathlib.Path:
    """Make a model that is right for an even number of at least 20 rows."""
    text = """<ir_version: 10, opset_import: ["" : 20]> g (float[n, 4] x) => (float[n, 4] y) { y = Neg (x) }"""
    model = onnx.parser.parse_model(text)
    conditions = {"guards": ["20 <= n", "n % 2 == 0"], "fixed": [], "unchecked": [], "tried": []}
    model.metadata_props.add(key=KEY, value=json.dumps(conditions))
    onnx.save(model, tmp_path / "guarded.onnx")
    return tmp_path / "guarded.onnx"


def test_sizes_are_chosen_inside_of_guards_and_tried_outside(guarded):
    verification = verify(guarded, moec.compile(guarded))
    assert verification.matches and verification.refused == ["20 <= n", "n % 2 == 0"]
    assert not verification.spread and verification.tolerance == TOLERANCES["float32"]
    assert [case.inputs["x"] for case in verification.cases] == [(20, 4), (300, 4)]


def test_an_artifact_without_the_guards_of_its_model_differs(guarded, tmp_path):
    model = onnx.load(guarded)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "unguarded.onnx")
    verification = verify(guarded, moec.compile(tmp_path / "unguarded.onnx"))
    assert not verification.matches and verification.refused == []
    assert "although n % 2 == 0 does not hold" in shown(verification)


def test_onnxruntime_rounds_no_activations_that_the_model_does_not_round(tmp_path):
    """By default onnxruntime multiplies dequantised weights by x rounded to 8 bits."""
    stored = ", ".join(map(str, range(-64, 64)))
    text = f"""<ir_version: 10, opset_import: ["" : 21]> g (float[n, 32] x) => (float[n, 4] y)
        <int8[32,4] stored = {{{stored}}}, float[4] scale = {{0.1, 0.2, 0.3, 0.4}}> {{
            w = DequantizeLinear (stored, scale) y = MatMul (x, w) }}"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "quantised.onnx")
    assert verify(tmp_path / "quantised.onnx", moec.compile(tmp_path / "quantised.onnx")).matches


def test_inputs_of_another_type_are_refused_before_a_reference_takes_them(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(GATHER), path)
    compiled = moec.compile(path)
    assert verify(path, compiled, {"ids": np.array([1, 0])}).matches
    monkeypatch.setattr("moec.tools.verify.Reference.run", lambda *_: pytest.fail("the reference runs"))
    with pytest.raises(InputError, match=r"ids.*float32"):
        verify(path, compiled, {"ids": np.zeros(2, np.float32)})


@pytest.mark.parametrize("other", ["float[n, 4] x, float[n, m] z", "float[n, 5] x", "float[n] x"])
def test_artifacts_of_models_with_other_inputs_are_refused(guarded, tmp_path, other):
    text = f"""<ir_version: 10, opset_import: ["" : 20]> g ({other}) => (y) {{ y = Neg (x) }}"""
    compiled = moec.compile(onnx.parser.parse_model(text))
    with pytest.raises(MoecError, match=r"the artifact takes .*, but .*guarded\.onnx .*compiled from"):
        verify(guarded, compiled)


GATHER = """<ir_version: 10, opset_import: ["" : 21]>
g (int64[n] ids) => (float[n] y) <float[2] table = {1, 2}> { y = Gather (table, ids) }"""
