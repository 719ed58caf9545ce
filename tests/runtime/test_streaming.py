"""Models whose weights are larger than the memory they may take compute the same as with all of them in memory."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import threading

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import moec
from moec.common.errors import ArtifactError, MoecError, RoomError, UnsupportedError
from moec.common.specs import StreamedWeight
from moec.compiling import compiler
from moec.compiling.compile_options import CompileOptions
from moec.ir import interpreter
from moec.ir.dialect import is_moec
from moec.passes import pipeline
from moec.runtime.artifact import Artifact, open_artifact
from moec.runtime.expert_pages import ExpertPages
from moec.runtime.manifest import WEIGHTS
from moec.runtime.model import CompiledModel
from moec.runtime.streamed_experts import StreamedExperts, StreamedLayer
from moec.runtime.streaming import StreamPlan
from tests.language_model import VOCABULARY, language_model
from tests.plans import plan_file

from .forged_manifests import manifest_of, rewrite_program

IDS = np.random.default_rng(0).integers(0, VOCABULARY, (1, 40))
EXPERT = 48 * 64 * 4 * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Make two layers of eight experts, of which a token selects two, compiled to stream them."""
    path = tmp_path_factory.mktemp("streamed")
    moec.compile(language_model(path / "model.onnx"), resident="1MiB", output=path / "model.moec")
    return path / "model.moec"


@pytest.fixture(scope="module")
def expected(folder) -> list[np.ndarray]:
    """Compute the result of each token, and of all of them together."""
    model = moec.load(folder)
    assert model.placement.pages == "mapped"  # there is memory for all
    assert model.streamed is None
    return [run(model, IDS[:, place : place + 1]) for place in range(IDS.size)] + [run(model, IDS)]


def run(model: CompiledModel, ids: np.ndarray) -> np.ndarray:
    return model.run({"ids": ids})["y"]


def least(folder: pathlib.Path) -> int:
    artifact = open_artifact(folder)
    (program,) = artifact.manifest.programs
    return StreamPlan.of(program.streamed, artifact.weight_entries(program)).least


def check_tokens(model: CompiledModel, expected: list[np.ndarray]) -> None:
    for place in range(IDS.size):
        np.testing.assert_array_equal(run(model, IDS[:, place : place + 1]), expected[place])


@pytest.mark.parametrize(("more", "threads"), [(0, 1), (1, 2), (3, 2), (6, 1)])
def test_tokens_are_those_of_a_model_in_memory(more, threads, folder, expected):
    model = moec.load(folder, resident=least(folder) + more * EXPERT, threads=threads)
    assert model.placement.pages == "streamed"
    check_tokens(model, expected)
    assert model.streamed is not None and model.streamed.bytes_read > 16 * EXPERT  # some were selected more than once
    assert model._experts is not None and model._experts.used <= model._experts.room
    if more == 6:  # a whole layer
        np.testing.assert_array_equal(run(model, IDS), expected[-1])
        check_tokens(model, expected)


def test_pages_that_experts_share_are_counted_once():
    layer = StreamedLayer("layer", [((0, 100), (9000, 20_000)), ((100, 9000), (20_000, 20_480))])
    assert layer.edges == 3 * 4096  # those of 100, 9000 and 20,000
    assert [layer.bytes_of(expert) for expert in (0, 1)] == [4096, 4096]


def test_experts_are_read_before_they_are_chosen(folder, expected):
    model = moec.load(folder, resident=least(folder) + 3 * EXPERT)
    check_tokens(model, expected)
    assert model.streamed is not None and 0 < model.streamed.guessed <= model.streamed.chosen == 4 * IDS.size


def test_experts_in_memory_take_the_places_of_others(folder, expected, tmp_path, monkeypatch):
    """The interpreter computes the same with the same experts in memory."""
    asked, ask = [], StreamedExperts.tolerance

    def noted(experts: StreamedExperts, layer: int) -> np.ndarray:
        asked.append(ask(experts, layer))
        return asked[-1]

    monkeypatch.setattr(StreamedExperts, "tolerance", noted)
    options = {"resident": least(folder) + 3 * EXPERT, "prefer_resident": 0.5}
    model = moec.load(folder, **options, threads=1)
    actual = [run(model, IDS[:, place : place + 1]) for place in range(IDS.size)]
    compute = interpreter.runner(with_tolerances_as_inputs(language_model(tmp_path / "model.onnx")))
    for place, y in enumerate(actual):
        tolerances = dict(zip(("m0_absent", "m1_absent"), asked[2 * place : 2 * place + 2], strict=True))
        reference = compute({"ids": IDS[:, place : place + 1], **tolerances})["y"]
        np.testing.assert_allclose(y, reference, rtol=1e-4, atol=1e-4)
    assert any((tolerance > 0).any() for tolerance in asked)
    assert not all(np.array_equal(y, exact) for y, exact in zip(actual, expected, strict=False))
    again, exact = (moec.load(folder, **{**options, "prefer_resident": loss}, threads=2) for loss in (0.5, 1e-9))
    check_tokens(again, actual)
    check_tokens(exact, expected)
    assert again.streamed is not None and exact.streamed is not None
    assert again.streamed.expected == exact.streamed.expected == 0  # reading ahead would make results depend on time
    assert again.streamed.there > exact.streamed.there


def with_tolerances_as_inputs(path: pathlib.Path) -> ir.Model:
    model = ir.from_proto(onnx.load(path))
    pipeline.run(model, pipeline.parse("infer-shapes,stream-experts"))
    for node in [node for node in model.graph if is_moec(node, "Absent")]:
        (old,) = node.outputs
        replacement = ir.val(old.name, shape=old.shape, type=old.type)
        old.replace_all_uses_with(replacement)
        model.graph.remove(node, safe=True)
        model.graph.inputs.append(replacement)
    return model


def test_callers_at_once(folder, expected):
    model = moec.load(folder, resident=least(folder) + EXPERT, threads=1)
    failed = []

    def call() -> None:
        try:
            check_tokens(model, expected)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_reads_on(folder, expected):
    model = moec.load(folder, resident=least(folder) + EXPERT, threads=1)
    check_tokens(model, expected)
    child = os.fork()
    if child == 0:
        try:
            check_tokens(model, expected)
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    check_tokens(model, expected)


def test_too_little_memory_is_refused_with_the_numbers(folder, tmp_path):
    least_bytes = least(folder)
    with pytest.raises(MoecError, match=r"0\.2 MiB are too few .*, 0\.2 of 0\.6 MiB"):
        moec.load(folder, resident=least_bytes - 1)
    with pytest.raises(MoecError, match=r"model\.onnx, rank 0: 0\.0 MiB are too few"):
        moec.compile(folder.parent / "model.onnx", ranks=2, resident="10 kB", output=tmp_path / "model.moec")
    assert not (tmp_path / "model.moec").exists()


@pytest.fixture(scope="module")
def uneven(folder) -> Artifact:
    """Artifact on two ranks: of each layer the first holds one expert, the second seven."""
    path, model = folder.parent / "ranks.moec", folder.parent / "model.onnx"
    slots = [[5], [0, 1, 2, 3, 4, 6, 7]]
    moec.compile(model, plan=plan_file(folder.parent / "plan.json", model, [slots, slots]), output=path)
    return open_artifact(path)


def own_plan(artifact: Artifact, rank: int) -> StreamPlan:
    (program,) = artifact.manifest.programs
    return StreamPlan.of(program.streamed, artifact.weight_entries(program), artifact.manifest.plan, rank)


def test_a_rank_needs_memory_for_its_own_experts(uneven):
    (program,) = uneven.manifest.programs
    plans = [own_plan(uneven, rank) for rank in range(2)]
    whole = StreamPlan.of(program.streamed, uneven.weight_entries(program))
    assert [whole.least - plan.least for plan in plans] == [EXPERT, 0]  # a token takes two, and one rank has one
    assert [plan.size for plan in plans] == [whole.size - 14 * EXPERT, whole.size - 2 * EXPERT]
    for rank, plan in enumerate(plans):
        assert uneven.weights(program, resident=plan.least, rank=rank)[2] is not None
        with pytest.raises(MoecError, match="MiB are too few for its weights"):
            uneven.weights(program, resident=plan.least - 1, rank=rank)
    with pytest.raises(MoecError, match="MiB are too few for its weights"):
        uneven.weights(program, resident=plans[0].least)


def test_each_process_of_stages_and_ranks_has_memory_of_its_own(folder, tmp_path):
    model, path = folder.parent / "model.onnx", tmp_path / "model.moec"
    too_little_for_one = least(folder) - 1
    compiler.write(model, path, CompileOptions(stages=2, ranks=2, threads=1, resident=too_little_for_one))
    artifact = open_artifact(path)
    for stage in artifact.manifest.pipeline:
        for rank in range(2):
            _, placement, streamed = artifact.weights(stage.program, rank=rank)
            assert placement.pages == "streamed" and streamed is not None


def test_a_run_of_more_tokens_than_memory_has_experts_for_is_refused(folder, expected):
    model = moec.load(folder, resident=least(folder))
    refused = (
        r"8 experts of 'down0' are chosen in one run, .* fewer tokens at a time, or give the model (\d+) bytes more"
    )
    with pytest.raises(RoomError, match=refused) as refusal:
        run(model, IDS)
    check_tokens(model, expected)
    match = re.search(refused, str(refusal.value))
    assert match is not None
    run(moec.load(folder, resident=least(folder) + int(match[1])), IDS)


def test_a_file_that_is_truncated_meanwhile(folder, expected, tmp_path):
    copy = tmp_path / "copy.moec"
    moec.load(folder).save(copy)
    model, weights = moec.load(copy, resident=least(folder), threads=2), copy / WEIGHTS
    whole = weights.read_bytes()
    os.truncate(weights, len(whole) // 2)
    with pytest.raises(
        ArtifactError, match=r"weights\.bin: expert \d of 'down1' cannot be read: it ends at byte \d+"
    ) as info:
        check_tokens(model, expected)
    assert "\n" not in str(info.value)
    weights.write_bytes(whole)
    check_tokens(model, expected)


def test_a_disk_that_fails(folder, expected, monkeypatch):
    model = moec.load(folder, resident=least(folder) + EXPERT)
    read = os.preadv

    def fail(*_arguments: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(ArtifactError, match=r"expert \d of 'down\d' cannot be read: byte .* Input/output error"):
        check_tokens(model, expected)
    monkeypatch.setattr(os, "preadv", read)
    check_tokens(model, expected)


def test_file_systems_without_direct_reads(folder, expected, monkeypatch):
    monkeypatch.setattr(os, "O_DIRECT", 0, raising=False)
    check_tokens(moec.load(folder, resident=least(folder)), expected)


def test_systems_that_move_no_pages(folder, expected, monkeypatch):
    monkeypatch.setattr(ExpertPages, "move", lambda *_arguments: False)
    model = moec.load(folder, resident=least(folder) + 6 * EXPERT, threads=2)
    for ids, whole in ((IDS, expected[-1]), (IDS[:, :1], expected[0])):
        np.testing.assert_array_equal(run(model, ids), whole)
    check_tokens(model, expected)


def test_readers_end_with_their_model(folder, expected):
    model = moec.load(folder, resident=least(folder), threads=1)
    check_tokens(model, expected)
    readers = [thread for thread in threading.enumerate() if thread.name.startswith("moec-reads")]
    assert readers
    del model
    for thread in readers[-4:]:
        thread.join(10)
        assert not thread.is_alive()


def test_what_streams_nothing_says_so(tmp_path):
    path = language_model(tmp_path / "model.onnx")
    model = moec.compile(path)
    with pytest.raises(MoecError, match="compiled to have all weights in memory; compile it again with --resident"):
        moec.load(model.artifact.folder, resident="1MiB")
    with pytest.raises(UnsupportedError, match="target 'cuda' holds all weights in memory"):
        moec.compile(path, target="cuda", resident="1MiB")
    with pytest.raises(MoecError, match="resident is '8 pounds'; expected a number of bytes above 0, such as 8GiB"):
        moec.compile(path, resident="8 pounds")
    with pytest.raises(MoecError, match="was compiled to have all in memory; load it without prefer_resident"):
        moec.load(model.artifact.folder, prefer_resident=0.1)
    with pytest.raises(MoecError, match=r"resident is about experts .* pages is 'mapped'; leave one of them out"):
        moec.load(model.artifact.folder, resident="1MiB", pages="mapped")
    with pytest.raises(MoecError, match=r"prefer_resident is 1\.5; expected a share from 0 to 1"):
        moec.load(model.artifact.folder, prefer_resident=1.5)
    with pytest.raises(MoecError, match=r"no pass reads this profile.* or resident"):
        moec.compile(path, profile="p.moeprof")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chosen": 9}, "8 experts, of which 9 cannot be chosen"),
        ({"shares": (0.5,)}, "has 1 shares; expected 8"),
        ({"experts": 9}, "lie at no increasing places"),
        ({"weights": (StreamedWeight(99, tuple(range(9))),)}, "streams more than weight 99 has"),
        ({"weights": (StreamedWeight(0, (*range(8), 1 << 40)),)}, "streams more than weight 0 has"),
    ],
)
def test_forged_places_are_refused(change, reason, folder, tmp_path):
    copy = tmp_path / "copy.moec"
    moec.load(folder).save(copy)
    (program,) = manifest_of(copy).programs
    first, *others = program.streamed
    rewrite_program(copy, streamed=[dataclasses.replace(first, **change), *others])
    with pytest.raises(ArtifactError, match=reason):
        open_artifact(copy)
