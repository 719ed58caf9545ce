"""An artifact's experts move to other ranks: its program and weights stay, and other layers are refused."""

from __future__ import annotations

import dataclasses
import functools
import shutil

import numpy as np
import pytest

import moec
from moec.artifacts.placing import place_anew, placement_on
from moec.common.errors import MoecError
from moec.placing.placement import ExpertPlacement, linear
from moec.predicting.transport import transport_on
from moec.runtime.artifact import open_artifact
from moec.runtime.artifact_folder import copy_artifact
from tests.language_model import language_model, some_tokens


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("placed")
    moec.compile(language_model(folder / "m.onnx"), output=folder / "a.moec", ranks=4)
    return folder / "a.moec"


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_experts_move_without_compiling(artifact, tmp_path, form):
    path = tmp_path / "a.moec"
    shutil.copytree(artifact, path)
    if form == "zip":
        path = tmp_path / "a.zip"
        moec.load(artifact).save(path)
    before = moec.load(path)
    ids = np.load(some_tokens(tmp_path / "t.npz"))["ids"]
    place_anew(path, placement_on(path, 2), transport_on)
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
    named, _ = place_anew(path, dataclasses.replace(placement_on(path, 4), transport=other), transport_on)
    assert named.transport == other
    placed, reason = place_anew(path, placement_on(path, 3), transport_on)
    assert placed == open_artifact(path).manifest.placement
    assert placed.transport == chosen and "per token and layer" in reason


def test_a_profile_chooses_the_same_transport_as_in_compilation(artifact, tmp_path):
    model, measured = language_model(tmp_path / "m.onnx"), tmp_path / "p.moeprof"
    moec.profile(model, [some_tokens(tmp_path / "t.npz")], measured, formats="int8", moments=False)
    compiled = moec.compile(model, ranks=4, profile=measured).artifact.manifest
    copy_artifact(open_artifact(artifact), path := tmp_path / "a.moec")
    with_profile = functools.partial(transport_on, profile=measured)
    placed, reason = place_anew(path, placement_on(path, 4, profile=measured), with_profile)
    assert placed == compiled.placement
    assert "by the profile" in reason and any(reason in remark["message"] for remark in compiled.remarks)
    _, reason = place_anew(path, placement_on(path, 4), transport_on)
    assert "by the profile" not in reason


def test_placements_of_other_layers_are_refused(artifact):
    manifest = (artifact / "manifest.json").read_bytes()
    with pytest.raises(MoecError, match=r"has layers of \[8, 8\] experts; the placement is of layers of \[8\]"):
        place_anew(artifact, ExpertPlacement(2, (linear("a", 8, 2),)), transport_on)
    assert (artifact / "manifest.json").read_bytes() == manifest


def test_artifacts_for_one_process_are_refused(tmp_path):
    moec.compile(language_model(tmp_path / "m.onnx"), output=tmp_path / "a.moec", passes="O0")
    with pytest.raises(MoecError, match="compile it with --ranks"):
        placement_on(tmp_path / "a.moec", 2)
