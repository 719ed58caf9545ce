"""Stages by layers on two processes: the bits of one process, each with its own states and weights."""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import moec
from moec.common.errors import ArtifactError, MoecError
from moec.distributed.generation import generate
from moec.distributed.start import loaded
from moec.runtime.artifact import open_artifact
from moec.runtime.generation import prefilled
from moec.runtime.manifest import Manifest, print_manifest
from moec.runtime.read_manifest import parse_manifest
from tests.distributed.gloo import start_ranks
from tests.pipelined_model import pipelined_model

IDS = np.random.default_rng(0).integers(0, 9, (2, 6))


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("staged") / "model.moec"
    moec.compile(ir.to_proto(pipelined_model()), stages="0,1", output=path, threads=1)
    return path


def results_of(rank: int, path: pathlib.Path) -> dict[str, Any]:
    """Results of a plain run, of texts and of a session, and the bytes of this rank's states."""
    with loaded(path, threads=1) as model:
        texts = generate(model, [[1, 2, 3], [4, 5, 6, 7, 8], [0]], max_new_tokens=5, batch=2)
        session = model.session(max_tokens=20, batch=2)
        session.feed(IDS[:, :4])
        fork = session.fork()
        logits = [session.run(IDS[:, 4:], last=None), fork.run(IDS[:, 4:5]), prefilled(fork, IDS[:, 5:])]
        return {
            "outputs": model.run({"ids": IDS}),
            "ids": [text.ids for text in texts],
            "logits": logits,
            "bytes": session.state_bytes,
        }


def test_results_are_those_of_one_process(staged: pathlib.Path) -> None:
    expected = results_of(0, staged)
    ranks = start_ranks(2, results_of, staged).results()
    for actual in ranks:
        assert actual["ids"] == expected["ids"]
        assert actual["outputs"].keys() == expected["outputs"].keys()
        for name, array in expected["outputs"].items():
            assert actual["outputs"][name].tobytes() == array.tobytes(), name
        for own, other in zip(actual["logits"], expected["logits"], strict=True):
            assert own.tobytes() == other.tobytes()
        assert actual["bytes"] == expected["bytes"] // 2


def other_inputs(rank: int, path: pathlib.Path) -> None:
    with loaded(path, threads=1) as model:
        model.run({"ids": IDS + rank % 2})


@pytest.mark.nightly
def test_ranks_with_other_inputs_end(staged: pathlib.Path) -> None:
    ranks = start_ranks(2, other_inputs, staged)
    assert 0 not in ranks.codes(60)
    assert all("rank 0 runs on other inputs; expected the same inputs on all ranks" in said for said in ranks.said())


def test_stages_share_weights(staged: pathlib.Path) -> None:
    manifest = moec.load(staged).artifact.manifest
    whole = set(manifest.programs[0].weights)
    first, second = (set(stage.program.weights) for stage in manifest.pipeline)
    assert first | second == whole and len(manifest.weights) == len(whole)
    assert first - second and second - first


@pytest.mark.parametrize(
    ("stages", "message"), [(0, "is for one process; compile it with"), (2, "is for 2 ranks, and 3")]
)
def test_other_artifacts_and_numbers_of_ranks_are_refused(
    staged: pathlib.Path, monkeypatch: pytest.MonkeyPatch, stages: int, message: str
) -> None:
    artifact = open_artifact(staged)
    del artifact.manifest.pipeline[stages:]
    monkeypatch.setattr("moec.distributed.start.open_artifact", lambda *_, **__: artifact)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(MoecError, match=message), loaded(staged):
        pass


def take_what_nobody_computes(manifest: Manifest) -> None:
    manifest.pipeline[0].inputs.append(manifest.pipeline[1].inputs[-1])


def leave_out_the_logits(manifest: Manifest) -> None:
    del manifest.pipeline[1].outputs[:]
    manifest.pipeline[1].program.held.clear()
    manifest.pipeline[1].program.last = None


def leave_out_a_layer(manifest: Manifest) -> None:
    manifest.pipeline[1].first = 2


def take_a_weight_that_is_not_there(manifest: Manifest) -> None:
    manifest.pipeline[1].program.weights[0] = len(manifest.weights)


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (take_what_nobody_computes, "stage 0 takes x1 .*, which no earlier stage computes"),
        (leave_out_the_logits, "no stage computes the output"),
        (leave_out_a_layer, "stage 1 has layers 2 to 1 after 0"),
        (take_a_weight_that_is_not_there, "a program takes weight"),
    ],
)
def test_forged_stages_are_refused(staged: pathlib.Path, forge: Callable[[Manifest], None], message: str) -> None:
    manifest = copy.deepcopy(open_artifact(staged).manifest)
    assert parse_manifest(print_manifest(manifest), "here") == manifest
    forge(manifest)
    with pytest.raises(ArtifactError, match=message):
        parse_manifest(print_manifest(manifest), "here")
