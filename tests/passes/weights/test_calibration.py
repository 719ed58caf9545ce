"""Weights rounded by the recorded inputs of a profile, in every layout."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import MoecError
from moec.ir.dialect import ExpertsSpec
from moec.ir.expert_weights import ExpertWeights
from moec.ir.weight_operands import weight_inputs
from moec.ir.weights.stored import weight_runs
from moec.passes.weights import gptq, kept
from moec.tools.profiling import profile

from ...products import thinned
from ..profiles import hidden_of, rows_of, write_experts, write_linear
from ..stored_weights import D, E, F, apply, expert_arrays, experts_model, formats_of, last_moec_node, linear_model

SPECS = {
    "fused": ExpertsSpec(),
    "interleaved": ExpertsSpec(gate_layout="interleaved", up_transposed=True),
    "plain": ExpertsSpec("relu", "none", down_transposed=True),
    "separate": ExpertsSpec("gelu", "separate", down_transposed=True),
    "of several sizes": ExpertsSpec(hidden_sizes=(64, 32, 40, 64, 7, 64)),
}
SEEN = [1000] * E


def part_errors(model: ir.Model, before: ir.Model) -> dict[str, np.ndarray]:
    """The error of each part's output of each expert on the inputs that the profile is of."""
    node, old = last_moec_node(model), last_moec_node(before)
    result, expected = ExpertWeights(node), ExpertWeights(old)
    errors: dict[str, list[float]] = {part: [] for part in result.parts}
    for expert in range(E):
        rows = rows_of(D, 1000, expert)
        for part in result.parts:
            inputs = hidden_of(old, expert, rows) if part == "down" else rows
            difference = result.decoded(part, expert) - expected.decoded(part, expert)
            errors[part].append(float(np.linalg.norm(inputs @ difference)))
    return {part: np.array(of_part) for part, of_part in errors.items()}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@thinned("form", ["int4,group=32", "int3"], 2)
def test_each_part_makes_up_for_its_errors(form: str, spec: ExpertsSpec, tmp_path) -> None:
    errors = {}
    for method in ("rtn", "awq", "gptq"):
        model, before = experts_model(spec), experts_model(spec)
        profile = write_experts(tmp_path / method, model, SEEN)
        (loss,) = apply(model, f"quantize-experts{{format={form},method={method},profile={profile}}}").losses
        errors[method] = part_errors(model, before) | {"layer": np.array(loss.output_error)}
    for part, lost in errors["gptq"].items():
        assert (lost < (0.5 if part in ("gate", "up") else 0.8) * errors["rtn"][part]).all(), part
    for part, lost in errors["awq"].items():
        assert (lost < errors["rtn"][part]).all() and (lost > errors["gptq"][part]).all(), part


def test_experts_that_were_hardly_seen_have_searched_scales_alone(tmp_path, monkeypatch) -> None:
    calibrated = []
    monkeypatch.setattr(gptq, "_factor", lambda moment: calibrated.append(len(moment)) or np.eye(len(moment)))
    model = experts_model(SPECS["fused"])
    counts = [1000, 0, D // 4, D // 4 - 1, F // 4, F // 4 - 1]
    profile = write_experts(tmp_path / "p", model, counts)
    (loss,) = apply(model, f"quantize-experts{{format=int4,method=gptq,profile={profile}}}").losses
    assert sorted(calibrated) == sorted([D] * 2 + [F] * 4)
    assert np.isfinite(loss.output_error) and loss.output_error < 0.3


def test_an_expert_that_saw_nothing_is_rounded_by_the_tokens_of_the_layer(tmp_path) -> None:
    errors, counts, last = {}, [1000] * (E - 1) + [0], E - 1
    others = rows_of(D, 1000, seed=99)
    for sampled in (0, 512):
        model, before = experts_model(SPECS["fused"]), experts_model(SPECS["fused"])
        profile = write_experts(tmp_path / str(sampled), model, counts, sampled=sampled)
        apply(model, f"quantize-experts{{format=int4,group=32,method=gptq,profile={profile}}}")
        node, old = last_moec_node(model), last_moec_node(before)
        for part in ("up", "down"):
            inputs = hidden_of(old, last, others) if part == "down" else others
            change = ExpertWeights(node).decoded(part, last) - ExpertWeights(old).decoded(part, last)
            errors[part, sampled] = np.linalg.norm(inputs @ change)
    assert errors["up", 512] < 0.5 * errors["up", 0]
    assert errors["down", 512] < 0.9 * errors["down", 0]


def test_experts_are_made_once_whoever_reads_them(tmp_path, monkeypatch) -> None:
    built: list[int] = []
    factor = gptq._factor
    monkeypatch.setattr(gptq, "_factor", lambda moment: built.append(len(moment)) or factor(moment))
    model = experts_model(SPECS["fused"])
    profile = write_experts(tmp_path / "p", model, SEEN)
    apply(model, f"quantize-experts{{format=int4,method=gptq,zero_points=true,profile={profile}}}")
    for value in weight_inputs(last_moec_node(model)).values():
        for run in weight_runs(value):
            for tensor in (run.data, run.scale, run.zero_point):
                assert tensor is not None and tensor.const_value is not None
                assert tensor.const_value.numpy().shape == tuple(tensor.shape or ())
    assert len(built) == 2 * E


def test_bits_are_the_same_for_any_number_of_workers(tmp_path, monkeypatch) -> None:
    profile, digests = write_experts(tmp_path / "p", experts_model(SPECS["fused"]), SEEN), set()
    for workers in (1, 5):
        monkeypatch.setattr(kept, "available_cores", lambda count=workers: range(count))
        model = experts_model(SPECS["fused"])
        apply(model, f"quantize-experts{{format=int4,group=32,method=gptq,profile={profile}}}")
        (run,) = weight_runs(weight_inputs(last_moec_node(model))["up"])
        digests.add(b"".join(run.decoded(expert).tobytes() for expert in range(E)))
    assert len(digests) == 1


def test_chosen_experts_alone_are_made(tmp_path) -> None:
    model, before = experts_model(SPECS["separate"]), experts_model(SPECS["separate"])
    profile = write_experts(tmp_path / "p", model, SEEN)
    options = f"method=gptq,profile={profile}"
    apply(model, f"quantize-experts{{format=int4,group=32,gate=keep,experts=0-1,{options}}}")
    apply(model, f"quantize-experts{{format=int8,group=32,gate=keep,{options}}}")  # known though its weights changed
    assert formats_of(model) == {"up": ["int4/32", "int8/32"], "down": ["int4/32", "int8/32"], "gate": ["float32"]}
    errors = part_errors(model, before)
    assert not errors["gate"].any() and errors["up"][2:].max() < 0.1 * errors["up"][:2].min()


def test_a_profile_says_what_rounding_costs(tmp_path) -> None:
    models = [experts_model(SPECS["fused"]) for _ in range(2)]
    profile = write_experts(tmp_path / "p", models[0], SEEN)
    (with_rows,) = apply(models[0], f"quantize-experts{{format=int4,profile={profile}}}").losses
    (without,) = apply(models[1], "quantize-experts{format=int4}").losses
    assert with_rows.weight_error == without.weight_error and with_rows.output_error != without.output_error


def test_dense_products_are_calibrated_too(tmp_path) -> None:
    weight = np.random.default_rng(0).normal(size=(D, 64)).astype(np.float32)
    losses = {}
    for method in ("rtn", "awq", "gptq"):
        model = linear_model("y = moec.Linear <transposed = 1> (x, w)", {"w": weight})
        profile = write_linear(tmp_path / method, model, 1000)
        text = f"quantize-linears{{format=int4,group=32,minimum=0,method={method},profile={profile}}}"
        (loss,) = apply(model, text).losses
        losses[method] = loss.output_error
    assert losses["gptq"] < 0.5 * losses["rtn"] and losses["gptq"] < losses["awq"] < losses["rtn"]


@pytest.mark.parametrize("name", ["quantize-experts{format=int4", "quantize-linears{format=int4,minimum=0"])
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_without_a_profile_nothing_is_known(name: str, method: str) -> None:
    with pytest.raises(MoecError, match=f"method={method} needs to know the inputs of the weights; expected profile="):
        apply(experts_model(SPECS["fused"]), f"{name},method={method}}}")


def test_what_is_no_profile_is_refused(tmp_path) -> None:
    (tmp_path / "p").write_text("nothing")
    for path, message in ((tmp_path / "p", "is not a profile"), (tmp_path / "q", "cannot be read")):
        with pytest.raises(MoecError, match=message):
            apply(experts_model(SPECS["fused"]), f"quantize-experts{{format=int4,method=gptq,profile={path}}}")


def test_a_profile_of_another_model_is_refused(tmp_path) -> None:
    spec = SPECS["fused"]
    profile = write_experts(tmp_path / "p", experts_model(spec, expert_arrays(spec, seed=1)), SEEN)
    with pytest.raises(MoecError, match="node layer: nothing was measured of its weights"):
        apply(experts_model(spec), f"quantize-experts{{format=int4,method=gptq,profile={profile}}}")


def test_a_profile_without_moments_is_refused(tmp_path) -> None:
    profile = write_experts(tmp_path / "p", experts_model(SPECS["fused"]), SEEN, moments=False)
    message = re.escape("node layer: the profile lacks 'moment_in/0'; make it anew, with second moments")
    with pytest.raises(MoecError, match=message):
        apply(experts_model(SPECS["fused"]), f"quantize-experts{{format=int4,method=gptq,profile={profile}}}")
    assert apply(experts_model(SPECS["fused"]), f"quantize-experts{{format=int4,profile={profile}}}").losses


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(wrong: float, tmp_path) -> None:
    spec = SPECS["fused"]
    arrays = expert_arrays(spec)
    profile = write_experts(tmp_path / "p", experts_model(spec, arrays), SEEN)
    arrays["down"][3, 0, 1] = wrong
    with pytest.raises(MoecError, match="node layer: weight down of expert 3: it holds an infinity or a NaN"):
        apply(experts_model(spec, arrays), f"quantize-experts{{format=int4,method=gptq,profile={profile}}}")


def test_nothing_is_done_twice_to_what_is_quantised(tmp_path) -> None:
    model = experts_model(dataclasses.replace(SPECS["fused"]))
    apply(model, "quantize-experts{format=int8}")
    profile = write_experts(tmp_path / "p", experts_model(SPECS["fused"]), SEEN)
    again = apply(model, f"quantize-experts{{format=int4,method=gptq,profile={profile}}}")
    assert "nothing to quantise" in again.remarks[0].message and not again.losses


def test_passes_read_what_moec_profile_measures(tmp_path) -> None:
    weight = np.random.default_rng(0).normal(size=(D, 512)).astype(np.float32)
    model, path = linear_model("y = MatMul (x, w)", {"w": weight}, "float[T,512] y"), tmp_path / "model.onnx"
    ir.save(model, path)
    np.savez(tmp_path / "data.npz", x=rows_of(D, 1000))
    profile(path, [tmp_path / "data.npz"], tmp_path / "p", formats="")
    losses = {}
    for method in ("rtn", "gptq"):
        (loss,) = apply(
            ir.load(path), f"quantize-linears{{format=int4,method={method},profile={tmp_path / 'p'}}}"
        ).losses
        losses[method] = loss.output_error
    assert losses["gptq"] < 0.5 * losses["rtn"]


@pytest.mark.parametrize(("method", "rows", "warned"), [("gptq", 100, 1), ("gptq", 2000, 0), ("rtn", 100, 0)])
def test_too_few_rows_for_a_method_are_warned_of(method, rows, warned, tmp_path):
    model = experts_model(ExpertsSpec())
    profile = write_experts(tmp_path / "p", model, [rows] * E)
    report = apply(model, f"quantize-experts{{format=int8,method={method},profile={profile}}}")
    actual = [remark.message for remark in report.remarks if "profile more data" in remark.message]
    assert len(actual) == warned
    assert all(one.startswith("half of the experts saw 100 rows of data or fewer; method=gptq fits") for one in actual)


@pytest.mark.parametrize(("rows", "warned"), [(100, 1), (2000, 0)])
def test_too_few_rows_for_a_dense_product_are_warned_of(rows, warned, tmp_path):
    weight = np.random.default_rng(0).normal(size=(D, 512)).astype(np.float32)
    model = linear_model("y = moec.Linear <transposed = 1> (x, w)", {"w": weight}, "float[T,512] y")
    profile = write_linear(tmp_path / "p", model, rows)
    report = apply(model, f"quantize-linears{{format=int8,method=gptq,profile={profile}}}")
    actual = [
        remark.message
        for remark in report.remarks
        if remark.message.startswith(f"it saw {rows} rows of data; method=gptq")
    ]
    assert len(actual) == warned
