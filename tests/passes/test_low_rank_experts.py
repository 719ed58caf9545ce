from __future__ import annotations

import pathlib

import numpy as np
import onnx_ir as ir
import pytest

import moec
from moec.common.errors import MoecError
from moec.ir.dialect import ExpertsSpec
from moec.ir.expert_weights import ExpertWeights
from moec.ir.interpreter import run
from moec.passes.framework.base import Report
from moec.passes.weights.low_rank import factors, with_ridge
from moec.profiles import Profile

from ..products import thinned
from .profiles import rows_of, with_measures, write_measured
from .stored_weights import D, E, F, apply, experts_model, last_moec_node, relative_error

SPECS = {
    "gated": ExpertsSpec(),
    "plain": ExpertsSpec("relu2", "none", up_transposed=True),
    "separate": ExpertsSpec("gelu", "separate", down_transposed=True),
    "clamped": ExpertsSpec(gate_layout="interleaved", alpha=1.702, limit=0.5, up_offset=1.0, output_limit=0.3),
}


@pytest.fixture(scope="module", params=SPECS)
def spec(request: pytest.FixtureRequest) -> ExpertsSpec:
    return SPECS[request.param]


@pytest.fixture(scope="module")
def profile(spec: ExpertsSpec, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_measured(tmp_path_factory.mktemp("profile") / "p", experts_model(spec), "int8", tokens=400)


@pytest.fixture(scope="module")
def gated_profile(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_measured(tmp_path_factory.mktemp("profile") / "p", experts_model(SPECS["gated"]), "int8", tokens=400)


def split(spec: ExpertsSpec, profile: pathlib.Path, rank: int, more: str = "") -> tuple[ir.Model, Report]:
    model = experts_model(spec)
    return model, apply(model, f"low-rank-experts{{rank={rank},profile={profile}{more}}}")


@pytest.mark.parametrize("base", ["shared", "none"])
def test_results_stay_at_full_rank(spec, profile, base):
    model, report = split(spec, profile, F, f",base={base}")
    assert [node.op_type for node in model.graph if node.op_type in ("MoE", "Experts")] == []
    assert relative_error(model, experts_model(spec)) < 1e-4
    assert relative_error(model, experts_model(spec), T=0) == 0
    assert "the products change by 0.00%" in report.remarks[0].message


@pytest.mark.parametrize("base", ["shared", "none"])
def test_a_higher_rank_loses_less(spec, profile, base):
    before = experts_model(spec)
    errors = [seen_error(split(spec, profile, rank, f",base={base}")[0], before) for rank in (4, 16, 48)]
    assert errors == sorted(errors, reverse=True) and 0 < errors[-1] < 0.9 * errors[0]


def seen_error(model: ir.Model, before: ir.Model) -> float:
    """The error of the output for tokens like those of the profile, which choose all experts but the last."""
    logits = np.random.default_rng(0).normal(size=(200, E)).astype(np.float32)
    logits[:, -1] = -9
    inputs = {"x": rows_of(D, 200), "logits": logits}
    expected, result = (run(one, inputs)["y"] for one in (before, model))
    return float(np.linalg.norm(result - expected) / np.linalg.norm(expected))


def test_directions_of_the_data_are_kept(gated_profile, tmp_path):
    """Inputs lie mostly in few directions: a moment that knows nothing of them loses more."""
    spec, before = SPECS["gated"], experts_model(SPECS["gated"])
    (layer,) = Profile.read(gated_profile).all_experts()
    nothing = {
        f"{name}/{expert}": np.zeros_like(layer.array(f"{name}/{expert}"))
        for name in ("moment_in", "moment_hidden")
        for expert in range(E)
    }
    blind = with_measures_at(gated_profile, tmp_path / "p", nothing)
    knowing, unknowing = (seen_error(split(spec, path, 16)[0], before) for path in (gated_profile, blind))
    assert knowing < 0.8 * unknowing


def with_measures_at(source: pathlib.Path, path: pathlib.Path, arrays: dict[str, np.ndarray]) -> pathlib.Path:
    path.write_bytes(source.read_bytes())
    return with_measures(path, arrays)


@pytest.mark.parametrize("shape", [(96, 40), (40, 96), (130, 150)])
def test_the_error_is_what_the_dropped_values_say(shape):
    """Against the singular value decomposition of the whitened difference, and measured on rows with that moment."""
    random = np.random.default_rng(0)
    rows, weight, base = rows_of(shape[0], 500), random.normal(size=shape), random.normal(size=shape)
    moment = with_ridge(rows.T @ rows)
    left = np.linalg.cholesky(moment)
    values = np.linalg.svd(left.T @ (weight - base), compute_uv=False)
    for rank in (1, 7, 40):
        actual = factors(weight, base, rank, moment)
        error = left.T @ (weight - base - actual.into @ actual.out)
        assert np.sum(error**2) == pytest.approx(np.sum(values[rank:] ** 2), rel=1e-6, abs=1e-9 * np.sum(values**2))
        assert actual.dropped == pytest.approx(np.sum(error**2), rel=1e-6, abs=1e-9 * np.sum(values**2))
        assert actual.size == pytest.approx(np.sum((left.T @ weight) ** 2))


def test_the_moment_of_nothing_counts_all_directions_alike():
    np.testing.assert_array_equal(with_ridge(np.zeros((3, 3), np.float32)), np.eye(3))
    for broken in (np.full((2, 2), np.nan), -np.eye(2)):
        with pytest.raises(ValueError, match="negative or not finite"):
            with_ridge(broken)


def test_an_expert_that_no_token_reached_is_split_by_its_weights_alone(gated_profile):
    model, _ = split(SPECS["gated"], gated_profile, F)
    logits = np.full((5, E), -9, np.float32)
    logits[:, -1] = 9
    inputs = {"x": rows_of(D, 5), "logits": logits}
    expected = run(experts_model(SPECS["gated"]), inputs)["y"]
    np.testing.assert_allclose(run(model, inputs)["y"], expected, rtol=1e-3, atol=1e-3)


def test_the_base_is_the_mean_weighted_by_calls(gated_profile):
    model, _ = split(SPECS["gated"], gated_profile, 4)
    (layer,) = Profile.read(gated_profile).all_experts()
    weights, shares = ExpertWeights(last_moec_node(experts_model(SPECS["gated"]))), layer.count / layer.count.sum()
    assert shares[-1] == 0 and len(set(shares.tolist())) > 2
    mean = sum(share * weights.decoded("down", expert) for expert, share in enumerate(shares))
    actual = model.graph.initializers["y.down_base"].const_value
    assert actual is not None
    np.testing.assert_allclose(actual.numpy(), mean, atol=1e-6)


def test_the_same_bits_for_every_number_of_threads(gated_profile):
    from threadpoolctl import threadpool_limits

    def made(threads: int) -> list[bytes]:
        with threadpool_limits(threads, "blas"):
            model, _ = split(SPECS["gated"], gated_profile, 8)
        return [value.const_value.tobytes() for value in model.graph.initializers.values() if value.const_value]

    assert made(1) == made(2)


@thinned("narrower", [False, True], 2)
def test_the_processor(narrower, gated_profile):
    feeds = {"x": rows_of(D, 37), "logits": np.random.default_rng(2).normal(size=(37, E)).astype(np.float32)}
    model, _ = split(SPECS["gated"], gated_profile, 16)
    expected = run(model, feeds, dtype=np.float64)["y"]
    passes = f"low-rank-experts{{rank=16,profile={gated_profile}}}"
    if not narrower:
        y = moec.compile(experts_model(SPECS["gated"]), passes=passes).run(feeds)["y"]
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
        return
    apply(model, "quantize-experts{format=int8}")
    y = moec.compile(experts_model(SPECS["gated"]), passes=f"{passes},quantize-experts{{format=int8}}").run(feeds)["y"]
    assert np.linalg.norm(y - run(model, feeds)["y"]) < 2e-2 * np.linalg.norm(y)
    assert 0 < np.linalg.norm(y - expected) < 0.1 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("rank=0", "rank is 0; expected 1 or more"),
        ("rank=-3", "rank is -3; expected 1 or more"),
        (
            f"rank={F + 1}",
            f"rank is {F + 1}; its weights, of {D} inputs and {F} hidden units, have a rank of at most {F}",
        ),
        ("rank=4,base=mean", "base"),
    ],
)
def test_what_cannot_be_is_refused(options, message, gated_profile):
    with pytest.raises(MoecError, match=message):
        apply(experts_model(SPECS["gated"]), f"low-rank-experts{{{options},profile={gated_profile}}}")


def test_a_profile_of_another_model_is_refused(gated_profile):
    with pytest.raises(MoecError, match="nothing was measured of its weights"):
        apply(experts_model(SPECS["plain"]), f"low-rank-experts{{rank=4,profile={gated_profile}}}")


def test_a_profile_without_moments_is_refused(tmp_path):
    path = write_measured(tmp_path / "p", experts_model(SPECS["gated"]), "int8", moments=False)
    with pytest.raises(MoecError, match="the profile lacks 'moment_in/0'; make it anew, with second moments"):
        apply(experts_model(SPECS["gated"]), f"low-rank-experts{{rank=4,profile={path}}}")


@pytest.mark.parametrize(
    ("spec", "passes", "reason"),
    [
        (ExpertsSpec(), "quantize-experts{format=int8}", "rounded; run this pass before"),
        (ExpertsSpec(hidden_sizes=(F, 3, F, F, F, F)), "", "differ in size"),
        (ExpertsSpec(weight_on_input=True), "", "multiply the input"),
    ],
    ids=["quantised", "sizes", "weight on input"],
)
def test_layers_that_are_left_alone_say_why(spec, passes, reason, gated_profile):
    model = experts_model(spec)
    if passes:
        apply(model, passes)
    report = apply(model, f"low-rank-experts{{rank=4,profile={gated_profile}}}")
    assert [remark.severity for remark in report.remarks] == ["warning"]
    assert reason in report.remarks[0].message
    assert [node.op_type for node in model.graph if node.domain == "moec"][-1] == "MoE"


def test_a_model_without_experts_is_reported(gated_profile):
    model = experts_model(SPECS["gated"])
    apply(model, f"low-rank-experts{{rank=4,profile={gated_profile}}}")
    (remark,) = apply(model, f"low-rank-experts{{rank=4,profile={gated_profile}}}").remarks
    assert "no MoE block was raised before this pass" in remark.message
