"""An artifact's experts move to other ranks: its program and weights stay, and other layers are refused."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import shutil

import numpy as np
import pytest

import moec
from moec.artifacts.placing import place_anew
from moec.common.errors import MoecError
from moec.placing.plan import ExpertPlan, LayerPlan
from moec.predicting.transport import transport_on
from moec.runtime.artifact import open_artifact
from moec.runtime.artifact_folder import copy_artifact
from moec.runtime.streaming import StreamPlan
from moec.tools.planning import PlanTask, plan_artifact
from moec.tools.planning_ranks import RanksTask
from tests.language_model import language_model, some_tokens


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("placed")
    moec.compile(language_model(folder / "m.onnx"), output=folder / "a.moec", ranks=4)
    return folder / "a.moec"


def on_ranks(path: pathlib.Path, ranks: int) -> ExpertPlan:
    return plan_artifact(path, PlanTask(ranks=RanksTask(ranks)))


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_experts_move_without_compiling(artifact, tmp_path, form):
    path = tmp_path / "a.moec"
    shutil.copytree(artifact, path)
    if form == "zip":
        path = tmp_path / "a.zip"
        moec.load(artifact).save(path)
    before = moec.load(path)
    ids = np.load(some_tokens(tmp_path / "t.npz"))["ids"]
    place_anew(path, on_ranks(path, 2), transport_on)
    after = moec.load(path)
    placement = after.artifact.manifest.placement
    assert placement is not None and placement.ranks == 2
    assert [len(slots) for slots in placement.layers[0].slots] == [4, 4]
    assert before.artifact.manifest.files == after.artifact.manifest.files and before.digest != after.digest
    assert np.array_equal(before.run({"ids": ids})["y"], after.run({"ids": ids})["y"])


@pytest.mark.parametrize(("top_k", "chosen"), [(2, "alltoall"), (8, "allgather")])
def test_the_transport_is_chosen_for_the_new_ranks(artifact, tmp_path, top_k, chosen):
    opened, path = open_artifact(artifact), tmp_path / "a.moec"
    for block in opened.manifest.moe_blocks:
        block["top_k"] = top_k
    copy_artifact(opened, path)
    other = "allgather" if chosen == "alltoall" else "alltoall"
    named, _ = place_anew(path, dataclasses.replace(on_ranks(path, 4), transport=other), transport_on)
    assert named.transport == other
    placed, reason = place_anew(path, on_ranks(path, 3), transport_on)
    assert placed == open_artifact(path).manifest.plan
    assert placed.transport == chosen and "per token and layer" in reason


def test_a_profile_chooses_the_same_transport_as_in_compilation(artifact, tmp_path):
    model, measured = language_model(tmp_path / "m.onnx"), tmp_path / "p.moeprof"
    moec.profile(model, [some_tokens(tmp_path / "t.npz")], measured, formats="int8", moments=False)
    compiled = moec.compile(model, ranks=4, profile=measured).artifact.manifest
    copy_artifact(open_artifact(artifact), path := tmp_path / "a.moec")
    with_profile = functools.partial(transport_on, profile=measured)
    planned = plan_artifact(path, PlanTask(ranks=RanksTask(4)), measured)
    placed, reason = place_anew(path, planned, with_profile)
    assert placed == compiled.plan
    assert "by the profile" in reason and any(reason in remark["message"] for remark in compiled.remarks)
    _, reason = place_anew(path, on_ranks(path, 4), transport_on)
    assert "by the profile" not in reason


OTHER = LayerPlan("f" * 16, "m9", 8, slots=((0, 1, 2, 3, 4, 5, 6, 7),))
"""A layer that the artifact does not have."""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda plan: replaced(plan, layers=plan.layers[:1]),
            r"p\.json: has no layer \w+ \(m1\) of 8",
        ),
        (
            lambda plan: replaced(plan, layers=(*plan.layers, at_rank(OTHER))),
            r"f{16} \(m9\) is not in the artifact",
        ),
        (lambda plan: replaced(plan, device="cuda"), "device is 'cuda'; the artifact is for 'cpu': compile the model"),
        (lambda plan: in_one_process(plan), "is for one process; the artifact was compiled for 4 ranks: compile"),
        (
            lambda plan: with_layer(plan, formats={"up": ["keep"] * 7 + ["int8"]}),
            r"formats\.up\[7\] is 'int8', and the artifact stores 'keep': compile the model with moec compile --plan",
        ),
        (lambda plan: with_layer(plan, slots=()), r"layer \w+ \(m0\): slots is missing"),
        (lambda plan: replaced(plan, resident=1000), r"p\.json, rank 0: 0\.0 MiB are too few for its weights"),
    ],
)
def test_plans_that_need_another_compilation_are_refused(artifact, change, message):
    manifest = (artifact / "manifest.json").read_bytes()
    with pytest.raises(MoecError, match=message):
        place_anew(artifact, change(on_ranks(artifact, 4)), transport_on, "p.json")
    assert (artifact / "manifest.json").read_bytes() == manifest


replaced = dataclasses.replace


def at_rank(layer: LayerPlan) -> LayerPlan:
    return replaced(layer, slots=(*layer.slots, (), (), ()))


def in_one_process(plan: ExpertPlan) -> ExpertPlan:
    layers = tuple(replaced(layer, slots=(), resident=()) for layer in plan.layers)
    return replaced(plan, layers=layers, ranks=None, transport=None)


def with_layer(plan: ExpertPlan, **fields: object) -> ExpertPlan:
    """Change the first layer of a plan."""
    return replaced(plan, layers=(replaced(plan.layers[0], **fields), *plan.layers[1:]))  # type: ignore[arg-type]


def test_memory_changes_without_compiling(artifact, tmp_path):
    path = tmp_path / "a.moec"
    shutil.copytree(artifact, path)
    least = max(own.least for own in of_ranks(path))
    planned = plan_artifact(path, PlanTask(resident=least))
    kept = [sum(map(len, ranks)) for ranks in zip(*(layer.resident for layer in planned.layers), strict=True)]
    assert all(0 < count < 4 for count in kept)  # of two experts in each of two layers
    place_anew(path, with_layer(planned, resident=((1,), (), (5,), (6,))), transport_on)
    opened = open_artifact(path)
    for rank, expected in enumerate([(0, 1), None, (0, 5), (0, 6)]):
        _, placement, streamed = opened.weights(opened.program(), rank=rank)
        assert placement.pages == "streamed" and streamed is not None
        first = of_ranks(path)[rank].first
        assert (expected in first) if expected else not any(layer == 0 for layer, _ in first)
        assert streamed.experts.used == sum(
            of_ranks(path)[rank].layers[layer].bytes_of(expert) for layer, expert in first
        )
    too_many = replaced(planned, layers=tuple(replaced(layer, resident=layer.slots) for layer in planned.layers))
    with pytest.raises(MoecError, match=r"rank 0: the plan keeps experts of 0\.\d+ MiB in memory, and"):
        place_anew(path, too_many, transport_on)


def of_ranks(path: pathlib.Path) -> list[StreamPlan]:
    opened = open_artifact(path)
    program, plan = opened.program(), opened.manifest.plan
    return [StreamPlan.of(program.streamed, opened.weight_entries(program), plan, rank) for rank in range(4)]


def test_artifacts_for_one_process_are_refused(tmp_path):
    moec.compile(language_model(tmp_path / "m.onnx"), output=tmp_path / "a.moec", passes="O0")
    with pytest.raises(MoecError, match="with all weights in memory; compile it with --ranks or --resident"):
        on_ranks(tmp_path / "a.moec", 2)
