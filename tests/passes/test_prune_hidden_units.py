from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import MoecError
from moec.ir.dialect import ExpertsSpec, inputs_of
from moec.ir.interpreter import run
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.profiles import Profile

from .profiles import rows_of, write_measured
from .stored_weights import D, E, F, apply, expert_arrays, experts_model, last_moec_node, relative_error

SPECS = [
    ExpertsSpec(),
    ExpertsSpec("relu", "none", up_transposed=True),
    ExpertsSpec("gelu", "separate", down_transposed=True),
    ExpertsSpec(gate_layout="interleaved"),
    ExpertsSpec(hidden_sizes=(F, F - 9, 40, F, 16, F)),
]
NAMES = ["gated", "plain", "separate", "interleaved", "of several sizes"]


@pytest.fixture(scope="module", params=SPECS, ids=NAMES)
def spec(request: pytest.FixtureRequest) -> ExpertsSpec:
    return request.param


@pytest.fixture(scope="module")
def profile(spec: ExpertsSpec, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_measured(tmp_path_factory.mktemp("profile") / "p", experts_model(spec), "int8", tokens=400)


def seen_error(model: ir.Model, before: ir.Model) -> float:
    """The error of the output for tokens like those of the profile, which choose all experts but the last."""
    logits = np.random.default_rng(0).normal(size=(400, E)).astype(np.float32)
    logits[:, -1] = -9
    inputs = {"x": rows_of(D, 400), "logits": logits}
    expected, result = (run(one, inputs)["y"] for one in (before, model))
    return float(np.linalg.norm(result - expected) / np.linalg.norm(expected))


def pruned(spec: ExpertsSpec, profile: pathlib.Path, keep: float, more: str = "") -> tuple[ir.Model, Report]:
    model = experts_model(spec)
    return model, apply(model, f"prune-hidden-units{{keep={keep},profile={profile}{more}}}")


def test_half_of_the_units_stay_and_make_up_for_the_others(spec, profile):
    model, report = pruned(spec, profile, 0.5)
    plain, _ = pruned(spec, profile, 0.5, ",compensate=false")
    node, before = last_moec_node(model), experts_model(spec)
    down = inputs_of(node)["down"]
    assert down is not None and F // 2 in down.shape
    assert 0 < seen_error(model, before) < 0.97 * seen_error(plain, before) < 0.9
    assert [remark.message[:26] for remark in report.remarks] == ["keeps 32 of 64 hidden unit"]
    assert relative_error(model, before, T=0) == 0


def test_the_units_with_the_least_energy_go(spec, profile):
    """Units without activity in the profile are removed whatever their weights are."""
    model, _ = pruned(spec, profile, 0.5, ",compensate=false,multiple=1")
    (layer,) = Profile.read(profile).all_experts()
    arrays, node = expert_arrays(spec), last_moec_node(model)
    for expert in range(E - 1):
        own = spec.hidden_sizes[expert] if spec.hidden_sizes else F
        down = arrays["down"][expert] if spec.down_transposed else arrays["down"][expert].T
        energy = (np.diag(layer.moment_hidden(expert)) * np.square(down).sum(axis=1))[:own]
        kept = np.sort(np.argsort(-energy, kind="stable")[: F // 2])
        actual = inputs_of(node)["down"].const_value.numpy()[expert]
        actual = actual if spec.down_transposed else actual.T
        assert np.array_equal(actual[: len(kept)], down[kept])


def test_more_units_lose_less(spec, profile):
    before = experts_model(spec)
    errors = [seen_error(pruned(spec, profile, keep)[0], before) for keep in (0.25, 0.5, 0.75)]
    assert errors == sorted(errors, reverse=True)


def test_all_units_stay_where_all_are_kept(spec, profile):
    for keep in (1, 0.99):
        model, report = pruned(spec, profile, keep)
        assert relative_error(model, experts_model(spec)) == 0
        assert [remark.message for remark in report.remarks] == [f"nothing to prune: {F} units are kept of {F}"]


def test_what_is_pruned_may_be_pruned_and_quantised_further_after_a_new_profile(spec, profile, tmp_path):
    model, _ = pruned(spec, profile, 0.5)
    with pytest.raises(MoecError, match="nothing was measured of its weights"):
        apply(model, f"quantize-experts{{format=int4,method=gptq,profile={profile}}}")
    assert Profile.read(profile).layer(last_moec_node(model)).hidden == F
    again = write_measured(tmp_path / "p", model, "int8")
    apply(model, f"quantize-experts{{format=int4,group=32,method=gptq,profile={again}}}")
    assert relative_error(model, pruned(spec, profile, 0.5)[0]) < 0.3


def test_layers_that_are_quantised_are_left_alone(profile, spec):
    model = experts_model(spec)
    apply(model, "quantize-experts{format=int8}")
    report = apply(model, f"prune-hidden-units{{keep=0.5,profile={profile}}}")
    assert [remark.severity for remark in report.remarks] == ["warning"]
    assert "run this pass before quantize-experts" in report.remarks[0].message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("keep=0", "keep is 0; expected a share of the units, above 0, up to 1"),
        ("keep=1.5", "keep is 1.5; expected"),
        ("keep=nan", "keep is nan; expected"),
        ("keep=0.5,multiple=0", "multiple is 0; expected 1 or more"),
    ],
)
def test_what_cannot_be_is_refused(options, message, spec, profile):
    with pytest.raises(MoecError, match=message):
        apply(experts_model(spec), f"prune-hidden-units{{{options},profile={profile}}}")


def test_another_model_is_refused(spec, profile):
    other = experts_model(dataclasses.replace(spec), expert_arrays(spec, seed=1))
    with pytest.raises(MoecError, match="nothing was measured of its weights"):
        apply(other, f"prune-hidden-units{{keep=0.5,profile={profile}}}")


def test_a_profile_without_moments_is_refused(spec, tmp_path):
    model = experts_model(spec)
    path = write_measured(tmp_path / "p", model, "int8", moments=False)
    with pytest.raises(MoecError, match="lacks 'moment_hidden/0'; make it anew, with second moments"):
        apply(model, f"prune-hidden-units{{keep=0.5,profile={path}}}")


def test_a_model_without_experts_stays(profile):
    model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 24}, name="g"), ir_version=11)
    assert not pipeline.run(model, pipeline.parse(f"prune-hidden-units{{keep=0.5,profile={profile}}}"))
