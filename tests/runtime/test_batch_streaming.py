"""Batches of models whose experts are not all in memory, against batches with all of them in memory, bit for bit."""

from __future__ import annotations

import os
import pathlib
import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from onnx import numpy_helper

import moec
from moec.common.errors import ArtifactError, UnsupportedError
from moec.ir.streaming import LEAST_TABLE
from moec.runtime.artifact import open_artifact
from moec.runtime.held import PAGE
from moec.runtime.manifest import WEIGHTS
from moec.runtime.streaming import StreamPlan

from .forged_manifests import manifest_of, rewrite_batch
from .test_batch import check, finish, tokens
from .tiny_decoder import tiny_decoder

UNITS = 96
EXPERT = UNITS * 32 * 4 * 3
SHORT, LONG = (5, 8, 1, 3), (5, 300, 1, 33)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Make two layers of six experts, of which a token selects two, and a large table of positions, compiled to stream
    them and for batches."""
    path, model = tmp_path_factory.mktemp("streamed") / "model.moec", tiny_decoder(units=UNITS)
    (places,) = [tensor for tensor in model.graph.initializer if tensor.name == "places"]
    rows = np.resize(numpy_helper.to_array(places), (LEAST_TABLE // 128, 32))
    places.CopyFrom(numpy_helper.from_array(rows, "places"))
    moec.compile(model, resident="1GiB", batches=True, output=path)
    return path


def with_room(folder: pathlib.Path, experts: int, **options) -> moec.CompiledModel:
    """Load the model with memory for so many experts, two or more."""
    artifact = open_artifact(folder)
    (program,) = artifact.manifest.programs
    plan = StreamPlan.of(program.streamed, artifact.weight_entries(program), tables=program.tables)
    model = moec.load(folder, resident=plan.least + (experts - 2) * EXPERT, **options)
    assert model.placement.pages == "streamed"
    return model


def texts(model: moec.CompiledModel, prompts: Sequence[int], steps: int = 3) -> list[dict[int, np.ndarray]]:
    """The logits of prompts, of tokens after them, and of a fork."""
    batch = model.batch(5, 8 * PAGE)
    for count in prompts:
        batch.add(tokens(count, count))
    results = [finish(batch)]
    fork = batch.fork(1)
    for seed in range(steps):
        for number in batch.sequences:
            batch.extend(number, tokens(1 + 3 * (number == fork), seed + number), last=None)
        results.append(finish(batch))
    return results


@pytest.mark.parametrize(("experts", "threads", "prompts"), [(2, 2, SHORT), (3, 1, SHORT), (6, 2, LONG)])
def test_sequences_have_the_bits_of_a_batch_in_memory(experts, threads, prompts, folder):
    """Five sequences select more experts of a layer than two or three in one step."""
    in_memory, model = moec.load(folder), with_room(folder, experts, threads=threads)
    for actual, expected in zip(texts(model, prompts), texts(in_memory, prompts), strict=True):
        check(actual, expected)
    assert in_memory.streamed is None
    assert model.streamed is not None and model.streamed.bytes_read > 12 * EXPERT
    assert model.looked_up is not None and model.looked_up.read > 0
    assert model._experts is not None and model._experts.used <= model._experts.room == experts * EXPERT


def test_a_step_has_as_many_sequences_as_memory_has_experts_for(folder):
    """A refused step costs a part of a run, so the next ones are smaller, and become larger again."""
    batch = with_room(folder, 3).batch(8, 8 * PAGE)
    for seed in range(8):
        batch.add(tokens(1, seed))
    counts = []
    while any(map(batch.waiting, batch.sequences)):
        counts.append(len(batch.step()))
    assert sum(counts) == 8 and 1 < len(counts) < 8


def test_parts_of_a_prompt_follow_from_its_own_tokens(folder):
    """With memory for few experts a prompt runs in small parts, whatever runs beside it."""
    prompt, numbers = tokens(70), list[np.ndarray]()
    for neighbours in range(3):
        batch = with_room(folder, 3, threads=1).batch(4, 8 * PAGE)
        first = batch.add(prompt)
        for seed in range(neighbours):
            batch.add(tokens(40, 1 + seed))
        numbers.append(finish(batch)[first])
    (whole,) = finish_alone(moec.load(folder), prompt)
    np.testing.assert_array_equal(numbers[0], numbers[1])
    np.testing.assert_array_equal(numbers[0], numbers[2])
    np.testing.assert_allclose(numbers[0], whole, rtol=1e-4, atol=1e-4)


def finish_alone(model: moec.CompiledModel, prompt: np.ndarray) -> list[np.ndarray]:
    batch = model.batch(1, PAGE)
    batch.add(prompt)
    return [*finish(batch).values()]


def test_a_file_that_breaks_during_a_step_leaves_the_batch_as_it_was(folder, tmp_path):
    copy = tmp_path / "copy.moec"
    moec.load(folder).save(copy)
    prompts, weights = (tokens(300), tokens(3, 1)), copy / WEIGHTS
    expected = texts_of(moec.load(folder).batch(2, 3 * PAGE), prompts)
    batch, whole = with_room(copy, 6).batch(2, 3 * PAGE), weights.read_bytes()
    for ids in prompts:
        batch.add(ids)
    before = batch.step()
    facts = [(batch.length(number), batch.waiting(number)) for number in batch.sequences], batch.free_pages
    os.truncate(weights, len(whole) - 3 * EXPERT)
    with pytest.raises(ArtifactError, match=r"weights\.bin: expert \d of '.*' cannot be read: it ends at byte \d+"):
        batch.step()
    assert facts == ([(batch.length(number), batch.waiting(number)) for number in batch.sequences], batch.free_pages)
    weights.write_bytes(whole)
    check(before | batch.step(), expected)


def texts_of(batch: moec.Batch, prompts: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
    for ids in prompts:
        batch.add(ids)
    return finish(batch)


def test_sessions_and_batches_in_threads_of_their_own(folder):
    """Programs that share experts take turns, with one thread, too."""
    model, in_memory, failed = with_room(folder, 2, threads=1), moec.load(folder), []

    def run(work: Callable[[moec.CompiledModel], np.ndarray]) -> None:
        expected = work(in_memory)
        try:
            for _ in range(5):
                np.testing.assert_array_equal(work(model), expected)
        except BaseException as error:
            failed.append(error)

    def of_session(of: moec.CompiledModel) -> np.ndarray:
        session = of.session()
        return np.concatenate([session.run([token]) for token in tokens(8, 1)])

    works = [of_session, lambda of: finish_alone(of, tokens(7, 2))[0]]
    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_what_makes_sequences_depend_on_others_is_refused(folder, tmp_path):
    model = with_room(folder, 3, prefer_resident=0.5)
    with pytest.raises(UnsupportedError, match="with prefer_resident a sequence would depend on what runs beside it"):
        model.batch(2, 100)
    copy = tmp_path / "copy.moec"
    moec.load(folder).save(copy)
    batch = manifest_of(copy).batch
    assert batch is not None
    rewrite_batch(copy, streamed=batch.program.streamed[::-1])
    moec.load(copy).batch(2, 100)  # which is harmless with all in memory
    with pytest.raises(ArtifactError, match="its program of batches reads weights in another way than the model does"):
        with_room(copy, 3).batch(2, 100)
