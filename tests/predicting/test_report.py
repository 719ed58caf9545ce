"""Predictions of an artifact, as the command prints them."""

from __future__ import annotations

import dataclasses
import json

import pytest

from moec.common.errors import MoecError
from moec.common.roofline import FLOAT32, Peak, Roofline
from moec.exploring import kernel_runs
from moec.exploring.subject import Subject
from moec.placing.placement import ExpertPlacement, LayerPlacement, linear
from moec.placing.plan import ExpertPlan, LayerPlan
from moec.predicting.artifact import model_on_ranks
from moec.predicting.links import Link
from moec.predicting.report import predict_on_ranks, report_data

from ..command import moec

LIMITS = Roofline(2, {"pages": 1e10}, (Peak(FLOAT32, "units", 1e11),))
LINK = Link(1e9, 1e-5)
BLOCKS = ["node_topk__1.experts", "node_topk_1__1.experts"]


@pytest.fixture(autouse=True)
def limits(monkeypatch):
    monkeypatch.setattr(kernel_runs, "limits_of_this_machine", lambda target, threads: LIMITS)


@pytest.fixture
def subject(char_lm):
    return Subject.open(char_lm, may_measure=True)


def test_experts_of_an_artifact_are_those_of_its_blocks(subject):
    model = model_on_ranks(subject, 16)
    assert [layer.experts.name for layer in model.workload.layers] == BLOCKS
    layer = model.workload.layers[0]
    assert (layer.k, list(layer.popularity), layer.groups) == (2, [1.0] * 8, 1)
    assert [(each.inner, each.width, each.weight_bits) for each in layer.experts.products] == [
        (64, 96, (32.0,)),
        (48, 64, (32.0,)),
    ]
    assert (layer.experts.width.out, layer.experts.width.back) == (64 * 4 + 2 * 4, 64 * 4)
    assert (model.routing, model.left_out) == ("even", ())


def test_all_other_kernels_are_the_dense_part(subject):
    """Products of experts are left out: what they take in the whole run is not in it."""
    dense = model_on_ranks(subject, 16).workload.dense(16)
    kernels = kernel_runs.predicted_run(subject, _kind(subject), 16).kernels
    experts = [row for row in kernels if "grouped" in row.name]
    assert len(experts) == 2
    assert dense.dense == pytest.approx(sum(row.seconds for row in kernels) - sum(row.seconds for row in experts))
    assert dense.shared == (0.0, 0.0)


def _kind(subject: Subject):
    from moec import targets

    return targets.kind_of(subject.artifact.manifest.target)


def planned(placement: ExpertPlacement) -> ExpertPlan:
    layers = tuple(LayerPlan(layer.name, layer.name, layer.experts) for layer in placement.layers)
    return ExpertPlan(layers).placed(placement)


def test_a_placement_from_a_file_is_taken_in_the_order_of_the_layers(subject, tmp_path):
    file = tmp_path / "plan.json"
    placed = ExpertPlacement(2, tuple(linear(name, 8, 2) for name in reversed(BLOCKS)))
    file.write_text(planned(placed).text())
    with_file = predict_on_ranks(subject, 2, 1, LINK, LINK, [16], file)
    without = predict_on_ranks(subject, 2, 1, LINK, LINK, [16])
    assert [layer.name for layer in with_file.predictions[0][0].layers] == BLOCKS
    assert with_file.predictions == without.predictions
    assert (with_file.placed, without.placed) == ("as in plan.json", "consecutive experts on consecutive ranks")


@pytest.mark.parametrize(
    ("placed", "expected"),
    [
        (ExpertPlacement(4, tuple(linear(name, 8, 4) for name in BLOCKS)), "is for 4 ranks on 1 nodes, not for 2 on 1"),
        (ExpertPlacement(2, (linear(BLOCKS[0], 8, 2),)), f"lacks a layer '{BLOCKS[1]}' of 8 experts"),
        (ExpertPlacement(2, tuple(linear(name, 9, 2) for name in BLOCKS)), f"lacks a layer '{BLOCKS[0]}' of 8 experts"),
    ],
)
def test_a_placement_of_another_model_or_number_of_ranks_is_refused(subject, tmp_path, placed, expected):
    file = tmp_path / "plan.json"
    file.write_text(planned(placed).text())
    with pytest.raises(MoecError, match=expected):
        predict_on_ranks(subject, 2, 1, LINK, LINK, [16], file)


def test_the_placement_and_transport_of_the_artifact_count_where_ranks_are_as_many(subject):
    layers = tuple(LayerPlacement(name, 8, ((1, 3), (5, 7), (0, 2), (4, 6))) for name in BLOCKS)
    subject.artifact.manifest.plan = planned(ExpertPlacement(4, layers, transport="allgather"))
    try:
        report = predict_on_ranks(subject, 4, 1, LINK, LINK, [16])
        other = predict_on_ranks(subject, 2, 1, LINK, LINK, [16])
    finally:
        subject.artifact.manifest.plan = None
    assert report.predictions[0][0].setup.placement.layers == layers
    assert (report.placed, report.choice.transport) == ("as compiled", "allgather")
    assert report.choice.reason.startswith("as compiled; else alltoall: ")
    assert (other.placed, other.choice.transport) == ("consecutive experts on consecutive ranks", "alltoall")


def test_blocks_of_unknown_sizes_are_left_out_and_named(subject):
    blocks = [{**block} for block in subject.description["moe_blocks"]]
    blocks[1]["top_k"] = None
    subject.description["moe_blocks"] = blocks
    assert model_on_ranks(subject, 16).left_out[0].startswith(f"{BLOCKS[1]}: its number of experts")
    blocks[0]["num_experts"] = None
    with pytest.raises(MoecError, match="has no layer of experts that can be predicted"):
        model_on_ranks(subject, 16)


def test_a_gpu_is_not_named_for_an_artifact_of_the_processor(subject):
    with pytest.raises(MoecError, match="leave out --gpu"):
        model_on_ranks(subject, 16, "h100")


def test_a_report_is_plain_data_and_says_that_it_is_predicted(subject):
    report = predict_on_ranks(subject, 4, 2, LINK, dataclasses.replace(LINK, latency=1e-4), [1, 64])
    data = json.loads(json.dumps(report_data(report)))
    assert data["predicted"] is True
    assert (data["ranks"], data["nodes"], data["links"]["engine"]) == (4, 2, "gloo")
    first, second = data["runs"]
    assert (first["tokens_per_rank"], second["tokens_per_rank"]) == (1, 64)
    assert not second["halves"]
    assert second["seconds"] == pytest.approx(sum(layer["seconds"] for layer in second["layers"]))
    assert 0 < second["communication_share"] < 1
    assert {change["kind"] for change in second["changes"]} >= {"transport", "link", "halves", "batch"}


def test_tokens_are_in_halves_where_programs_run_them_so(subject):
    slow, fast = Link(1e6, 1e-4), Link(1e15, 0.0)
    report = predict_on_ranks(subject, 2, 1, slow, slow, [511, 512])
    assert [predicted.setup.halves for predicted, _ in report.predictions] == [False, True]
    (quick,) = predict_on_ranks(subject, 2, 1, fast, fast, [512]).predictions
    assert not quick[0].setup.halves
    assert "halves" not in {change.kind for change in report.predictions[1][1]}
    (alone,) = predict_on_ranks(subject, 1, 1, slow, slow, [512]).predictions
    assert not alone[0].setup.halves


def test_the_command_prints_layers_and_what_would_help(char_lm):
    shown = moec("inspect", char_lm, "--ranks", "4", "--link", "1Gbit/s,100us", "--tokens", "64").stdout
    assert "Predicted, not measured: 4 ranks on 1 node" in shown
    assert all(name in shown for name in BLOCKS)
    assert "What would help most, predicted:\n  128 tokens on each rank: " in shown


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--ranks", "4"), "--ranks needs the links between them: add --link"),
        (("--link", "1GB/s,1us"), "--profile and --plan need --ranks"),
        (("--ranks", "4", "--link", "fast"), "--link is 'fast'; expected a bandwidth and a latency"),
        (("--ranks", "4", "--nodes", "3", "--link", "1GB/s,1us"), "4 ranks on 3 nodes"),
        (("--ranks", "4", "--launches"), "give one of --expert, --kernel, --launches and --ranks"),
        (("--ranks", "4", "--past", "1", "--link", "1GB/s,1us"), "--past needs --launches"),
    ],
)
def test_options_that_do_not_fit_are_refused(char_lm, options, expected):
    done = moec("inspect", char_lm, *options)
    assert done.returncode == 2 and expected in done.stderr
    assert done.stderr.count("\n") == 1
