"""A router that is fitted to its layer's earlier output: never worse on held-out tokens, and only where that is
possible."""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import onnx_ir as ir
import pytest

import moec
from moec.common.errors import MoecError
from moec.ir import interpreter
from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.profiles import Profile

from .before_after import assert_shown, check, model_of
from .profiles import rows_of, with_measures, write_measured, write_routed
from .stored_weights import D, apply, expert_arrays, routed_model

pytest.importorskip("torch", reason='needs the extra "torch": pip install "moec[torch]"')

ROUTINGS = [
    RouteSpec(2),
    RouteSpec(2, normalize=True),
    RouteSpec(3, "softmax_topk", relative_threshold=0.2),
    RouteSpec(2, "sigmoid", scale=2.0),
    RouteSpec(6, "softmax", "all"),
    RouteSpec(2, groups=2, groups_kept=1),
]


def error(model: ir.Model, before: ir.Model, x: np.ndarray) -> float:
    expected, result = (interpreter.run(one, {"x": x}, dtype=np.float64)["y"] for one in (before, model))
    return float(np.linalg.norm(result - expected) / np.linalg.norm(expected))


def tuned(model: ir.Model, path: pathlib.Path) -> Report:
    return apply(model, f"tune-router{{profile={path}}}")


def spoil(model: ir.Model, amount: float = 0.2) -> None:
    """Move the logits, along a direction of the tokens that matters."""
    matrix = model.graph.initializers["matrix"]
    numbers, random = matrix.const_value.numpy(), np.random.default_rng(6)
    moved = numbers + amount * random.normal(size=numbers.shape).astype(np.float32) * np.abs(numbers).mean()
    matrix.const_value = ir.tensor(moved, name="matrix")


@pytest.mark.parametrize("routing", ROUTINGS, ids=lambda spec: f"{spec.score} {spec.selection} {spec.k}")
def test_a_router_that_was_moved_comes_back(routing, tmp_path):
    """It comes most of the way, also for tokens that are not in the profile."""
    before, model = (routed_model(ExpertsSpec("relu", "none"), routing) for _ in range(2))
    path = write_routed(tmp_path / "p", model, tokens=2000)
    spoil(model)
    x = rows_of(D, 200, seed=9)
    first = error(model, before, x)
    (remark,) = tuned(model, path).remarks
    assert "on 128 tokens held out its output is" in remark.message and "instead of" in remark.message
    assert error(model, before, x) < 0.9 * first


@pytest.mark.parametrize("spec", [ExpertsSpec(), ExpertsSpec("gelu_tanh", "separate", identity_experts=2)])
def test_layers_with_other_experts_come_back(spec, tmp_path):
    before, model = (routed_model(spec, RouteSpec(2)) for _ in range(2))
    path = write_routed(tmp_path / "p", model, tokens=2000)
    spoil(model)
    x = rows_of(D, 200, seed=9)
    first = error(model, before, x)
    tuned(model, path)
    assert error(model, before, x) < 0.8 * first


def test_the_router_of_a_table_of_experts_is_tuned(tmp_path):
    """The table here comes from merged experts and from experts that are stored once."""
    model = routed_model(ExpertsSpec("relu", "none"), RouteSpec(2))
    path = write_routed(tmp_path / "p", model, tokens=2000)
    apply(model, f"merge-experts{{keep=4,profile={path}}}")
    before = model.clone()
    report = tuned(model, path)
    (remark,) = report.remarks
    assert "on 128 tokens held out its output is" in remark.message
    assert [node.op_type for node in model.graph] == [node.op_type for node in before.graph]


def test_a_router_that_is_the_best_stays(tmp_path):
    model = routed_model(ExpertsSpec())
    path = write_routed(tmp_path / "p", model)
    before = model.graph.initializers["matrix"].const_value.numpy()
    assert not pipeline.run(model, pipeline.parse(f"tune-router{{profile={path}}}"))
    (remark,) = tuned(model, path).remarks
    assert remark.message == "on 128 tokens held out its output is 0.00% from what it was; no other is surely better"
    np.testing.assert_array_equal(model.graph.initializers["matrix"].const_value.numpy(), before)


@pytest.mark.parametrize("tokens", [40, 128, 512])
@pytest.mark.parametrize("seed", range(3))
def test_the_error_on_tokens_held_out_never_grows(tokens, seed, tmp_path):
    before, model = routed_model(ExpertsSpec("relu", "none")), routed_model(ExpertsSpec("relu", "none"))
    path = write_routed(tmp_path / "p", model, tokens=tokens)
    apply(model, f"prune-experts{{keep=3,method=random,seed={seed}}}")
    held_out = rows_of(D, tokens)[3::4]
    first = error(model, before, held_out)
    tuned(model, path)
    assert error(model, before, held_out) <= first


def test_it_is_the_same_twice(tmp_path):
    actual = []
    for _ in range(2):
        model = routed_model(ExpertsSpec("relu", "none"))
        path = write_routed(tmp_path / "p", model)
        spoil(model)
        tuned(model, path)
        actual.append(model.graph.initializers["matrix_tuned"].const_value.numpy())
    np.testing.assert_array_equal(*actual)


LAYER = """(float[T,8] x) => ({outputs}) <float[8,4] matrix, float[4,16,8] up, float[4,8,16] down, float[8,8] all> {{
    {logits}
    routed = moec.MoE <activation = "relu", gate_layout = "none", {routing}> (x, logits, , up, down)
    shared = MatMul (x, all)
    y = Add (routed, shared) }}"""


def layer(routing: str = "k = 2", logits: str = "logits = MatMul (x, matrix)", outputs: str = "float[T,8] y") -> str:
    """A layer with a shared expert that all tokens see."""
    return LAYER.format(routing=routing, logits=logits, outputs=outputs)


@pytest.mark.parametrize(
    ("dtype", "product"), [("float", "Linear"), ("float16", "MatMul"), ("bfloat16", "Gemm"), ("float", "Transposed")]
)
def test_the_product_has_the_type_and_the_layout_that_it_had(dtype, product, tmp_path):
    spelled = {
        "Linear": "logits = moec.Linear (x, turned)",
        "Transposed": "logits = Gemm <transB = 1> (x, turned)",
        "MatMul": "logits = MatMul (x, matrix)",
        "Gemm": "logits = Gemm (x, matrix)",
    }[product]
    name, shape = ("turned", (4, 8)) if "turned" in spelled else ("matrix", (8, 4))
    text = layer(logits=spelled).replace("float[8,4] matrix", f"float[{shape[0]},{shape[1]}] {name}")
    model = model_of(text.replace("float[", f"{dtype}["))
    random = np.random.default_rng(0)
    for value in model.graph.initializers.values():
        numbers = random.normal(size=value.shape.numpy()).astype(value.dtype.numpy())
        value.const_value = ir.tensor(numbers, name=value.name)
    path = write_routed(tmp_path / "p", model)
    value = model.graph.initializers[name]
    value.const_value = ir.tensor((value.const_value.numpy() * 0.8).astype(value.dtype.numpy()), name=name)
    tuned(model, path)
    after = model.graph.initializers[f"{name}_tuned"]
    assert after.const_value.dtype == value.dtype and after.const_value.shape == value.shape
    assert_shown(model, text.replace("float[", f"{dtype}[").replace(name, f"{name}_tuned"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (layer("k = 2, capacity = 3"), "with its capacity of 3, a token's experts depend on other tokens"),
        (layer('k = 4, selection = "expert_choice", capacity = 2'), "its experts choose among all tokens of a run"),
        (layer('k = 2, score = "sparsemixer", jitter = 0.1'), "weights by sparsemixer are not followed"),
        (layer("k = 2, weight_on_input = 1"), "its experts see their input times the weight"),
        (layer(outputs="float[T,8] y, float[T,4] logits"), "'logits' is an output of the model"),
        (
            layer(logits="logits = MatMul (x, matrix) other = Relu (logits)", outputs="float[T,8] y, float[T,4] other"),
            "'logits' has other users",
        ),
        (
            layer(logits="scores = MatMul (x, matrix) logits = Tanh (scores)"),
            "its logits are not a product of its tokens with a constant matrix",
        ),
    ],
)
def test_layers_that_stay(text, reason, tmp_path):
    path = write_measured(tmp_path / "p", model_of(text), "int8")
    (remark,) = check(f"tune-router{{profile={path}}}", text)
    assert (remark.severity, remark.message) == ("warning", f"stays as it is: {reason}")


def test_shared_experts_are_not_counted(tmp_path):
    before = model_of(layer())
    path, model = write_routed(tmp_path / "p", before), before.clone()
    assert not pipeline.run(model, pipeline.parse(f"tune-router{{profile={path}}}"))


def test_few_tokens_are_too_few_and_those_with_a_nan_do_not_count(tmp_path):
    model = routed_model(ExpertsSpec())
    path = write_routed(tmp_path / "p", model, tokens=33)
    measures = next(Profile.read(path).all_experts())
    sample, output = np.array(measures.array("sample")), np.array(measures.array("sample_output"))
    sample[0, 0], output[1, 1] = np.nan, np.inf
    with_measures(path, {"sample": sample, "sample_output": output})
    (remark,) = tuned(model, path).remarks
    assert remark.message == "stays as it is: the profile holds 31 tokens of it that are finite; 32 are needed"


def test_an_expert_that_no_token_goes_to(tmp_path):
    before, model = (routed_model(ExpertsSpec("relu", "none"), gap=3) for _ in range(2))
    path = write_routed(tmp_path / "p", model)
    spoil(model)
    x = rows_of(D, 200, seed=9)
    first = error(model, before, x)
    tuned(model, path)
    assert error(model, before, x) < first


@pytest.mark.parametrize("form", ["int4,group=32", "int2,group=32"])
def test_of_quantised_experts_only_the_router_changes(form, tmp_path):
    model = routed_model(ExpertsSpec("relu", "none"))
    path = write_routed(tmp_path / "p", model)
    apply(model, f"quantize-experts{{format={form}}}")
    spoil(model)
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    tuned(model, path)
    after = {name: value.const_value for name, value in model.graph.initializers.items()}
    assert {name for name in after if after[name] is not before.get(name)} == {"matrix_tuned", "bias_tuned"}


def test_without_pytorch_it_says_so(tmp_path, monkeypatch):
    model = routed_model(ExpertsSpec())
    path = write_routed(tmp_path / "p", model)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MoecError, match=r'^tuning routers needs PyTorch: pip install "moec\[torch\]"$'):
        tuned(model, path)


def test_other_profiles_are_refused(tmp_path):
    other = routed_model(ExpertsSpec(), arrays=expert_arrays(ExpertsSpec(), seed=1))
    path = write_routed(tmp_path / "p", other)
    with pytest.raises(MoecError, match="nothing was measured of its weights"):
        tuned(routed_model(ExpertsSpec()), path)
    with pytest.raises(MoecError, match=r"none: cannot be read"):
        tuned(other, tmp_path / "none")


def test_a_model_without_experts_stays(tmp_path):
    text = "(float[T] x) => (float[T] y) { y = Relu (x) }"
    (remark,) = check(f"tune-router{{profile={tmp_path}/none}}", text)
    assert remark.message == "nothing to tune: no MoE block was raised before this pass"


def test_what_is_compiled_computes_the_same(tmp_path):
    model = routed_model(ExpertsSpec())
    path = write_routed(tmp_path / "p", model)
    spoil(model)
    tuned(model, path)
    assert "matrix_tuned" in model.graph.initializers
    compiled = moec.compile(model, passes="O1", threads=1)
    for T in (0, 1, 7, 65):
        x = rows_of(D, T, seed=T)
        expected = interpreter.run(model, {"x": x})["y"]
        np.testing.assert_allclose(compiled.run({"x": x})["y"], expected, rtol=1e-4, atol=1e-4)
