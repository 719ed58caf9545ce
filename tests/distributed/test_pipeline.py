"""Stages by layers on several processes: the bits of one process, each with its own states and weights."""

from __future__ import annotations

import copy
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import moec
from moec.common.errors import ArtifactError, MoecError
from moec.compiling import compiler
from moec.compiling.compile_options import CompileOptions
from moec.distributed.generation import generate
from moec.distributed.start import loaded
from moec.runtime.artifact import open_artifact
from moec.runtime.generation import prefilled
from moec.runtime.manifest import Manifest, print_manifest
from moec.runtime.read_manifest import parse_manifest
from moec.runtime.streaming import StreamPlan
from tests.distributed.gloo import start_ranks
from tests.distributed.rounds import fail
from tests.distributed.test_failures import lines
from tests.language_model import language_model
from tests.pipelined_model import pipelined_model

TIMEOUT = 15
IDS = np.random.default_rng(0).integers(0, 9, (2, 6))


@pytest.fixture(scope="module", params=[2, pytest.param(None, marks=pytest.mark.nightly)])
def staged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Artifact of two stages, with two ranks each or without."""
    path = tmp_path_factory.mktemp("staged") / "model.moec"
    moec.compile(ir.to_proto(pipelined_model()), stages="0,1", ranks=request.param, output=path, threads=1)
    return path


def processes_of(path: pathlib.Path) -> int:
    manifest = open_artifact(path).manifest
    return len(manifest.pipeline) * (1 if manifest.placement is None else manifest.placement.ranks)


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
    ranks = start_ranks(processes_of(staged), results_of, staged).results()
    for actual in ranks:
        assert actual["ids"] == expected["ids"]
        assert actual["outputs"].keys() == expected["outputs"].keys()
        for name, array in expected["outputs"].items():
            assert actual["outputs"][name].tobytes() == array.tobytes(), name
        for own, other in zip(actual["logits"], expected["logits"], strict=True):
            assert own.tobytes() == other.tobytes()
        assert actual["bytes"] == expected["bytes"] // 2


def compiled(path: pathlib.Path, stages: str, ranks: int | None) -> pathlib.Path:
    """Compile a model of three layers, of which the second has no experts and the first gives a value to the end."""
    model = pipelined_model(3, dense=[1], passes_stages=True)
    moec.compile(ir.to_proto(model), stages=stages, ranks=ranks, output=path, threads=1)
    return path


def grid_results(rank: int, path: pathlib.Path) -> tuple[list[list[int]], list[dict[str, Any]]]:
    """Texts, and outputs of three sequences, of fewer than there are ranks, and of none."""
    with loaded(path, threads=1) as model:
        texts = generate(model, [[1, 2, 3], [4, 5, 6, 7, 8], [0], [2, 2], [3]], max_new_tokens=4, batch=2)
        cases = [np.resize(IDS, (count, 6)) for count in (3, 1, 0)]
        return [text.ids for text in texts], [model.run({"ids": ids}) for ids in cases]


@pytest.mark.nightly
@pytest.mark.parametrize(("stages", "ranks"), [("3", None), ("0-1,2", 1), ("0,1-2", 3), ("2", 2)])
def test_stages_of_several_ranks_give_the_bits_of_one_process(
    tmp_path: pathlib.Path, stages: str, ranks: int | None
) -> None:
    path = compiled(tmp_path / "model.moec", stages, ranks)
    ids, outputs = grid_results(0, path)
    for own_ids, own in start_ranks(processes_of(path), grid_results, path).results():
        assert own_ids == ids
        for case, expected in zip(own, outputs, strict=True):
            assert {name: array.tobytes() for name, array in case.items()} == {
                name: array.tobytes() for name, array in expected.items()
            }


def streamed_results(rank: int, path: pathlib.Path) -> tuple[list[np.ndarray], bool]:
    """Outputs of single tokens, and whether experts were read meanwhile."""
    with loaded(path, threads=1) as model:
        outputs = [model.run({"ids": np.array([[id]])})["y"] for id in range(12)]
        return outputs, model.streamed is not None and model.streamed.bytes_read > 0


@pytest.mark.nightly
@pytest.mark.parametrize("ranks", [None, 2])
def test_each_stage_streams_its_own_layers(tmp_path: pathlib.Path, ranks: int | None) -> None:
    model, path = language_model(tmp_path / "model.onnx"), tmp_path / "model.moec"
    compiler.write(model, path, CompileOptions(stages=2, ranks=ranks, resident="140KiB", threads=1))
    one = moec.compile(model, threads=1)
    expected = [one.run({"ids": np.array([[id]])})["y"] for id in range(12)]
    for outputs, has_read in start_ranks(processes_of(path), streamed_results, path).results():
        assert has_read
        assert all(actual.tobytes() == own.tobytes() for actual, own in zip(outputs, expected, strict=True))


def run_until(rank: int, path: pathlib.Path, fault: str) -> None:
    """Run again and again, until rank 1 meets a fault."""
    os.environ["MOEC_RANKS_TIMEOUT"] = str(TIMEOUT)  # of the start, too, in which all ranks link their programs
    with loaded(path, threads=1) as model:
        for count in range(1_000_000):
            model.run({"ids": IDS})
            if rank == 1 and count == 2:
                fail(fault)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("kill", "rank 1 closed its connection"),
        ("stop", f"rank 1 did not answer within {TIMEOUT} s"),
        ("bad input", "rank 1 ended: prompts.txt: is empty; expected a prompt"),
    ],
)
@pytest.mark.parametrize(("stages", "ranks"), [("3", None), ("2", 2)])
def test_all_ranks_say_which_is_lost(
    tmp_path: pathlib.Path, stages: str, ranks: int | None, fault: str, expected: str
) -> None:
    path = compiled(tmp_path / "model.moec", stages, ranks)
    survivors = [rank for rank in range(processes_of(path)) if rank != 1]
    for line in lines(start_ranks(processes_of(path), run_until, path, fault), survivors, TIMEOUT + 25):
        assert expected in line


def other_inputs(rank: int, path: pathlib.Path) -> None:
    with loaded(path, threads=1) as model:
        model.run({"ids": IDS + rank * 2 // processes_of(path)})


@pytest.mark.nightly
def test_ranks_with_other_inputs_end(staged: pathlib.Path) -> None:
    ranks = start_ranks(processes_of(staged), other_inputs, staged)
    assert 0 not in ranks.codes(60)
    expected = "rank [01] runs on other inputs; expected the same inputs on all ranks"
    assert all(re.search(expected, said) for said in ranks.said())


def test_stages_share_weights(staged: pathlib.Path) -> None:
    manifest = moec.load(staged).artifact.manifest
    whole = set(manifest.programs[0].weights)
    first, second = (set(stage.program.weights) for stage in manifest.pipeline)
    assert first | second == whole and len(manifest.weights) == len(whole)
    assert first - second and second - first


def test_a_stage_reads_its_weights_alone(staged: pathlib.Path) -> None:
    artifact = open_artifact(staged)
    for stage in artifact.manifest.pipeline:
        plan = StreamPlan.of(stage.program.streamed, artifact.weight_entries(stage.program))
        own = set(stage.program.weights)
        others = [entry for index, entry in enumerate(artifact.manifest.weights) if index not in own]
        assert others and plan.others
        for entry in others:
            end = entry.offset + entry.bytes
            assert all(last <= entry.offset or end <= first for first, last in plan.others)


@pytest.mark.parametrize(
    ("stages", "message"), [(0, "is for one process; compile it with"), (2, "is for 2 ranks, and 3")]
)
def test_other_artifacts_and_numbers_of_ranks_are_refused(
    staged: pathlib.Path, monkeypatch: pytest.MonkeyPatch, stages: int, message: str
) -> None:
    artifact = open_artifact(staged)
    artifact.manifest.plan = None
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
