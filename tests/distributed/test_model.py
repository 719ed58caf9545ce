"""A placed model on several ranks gives the bits of one process, and a rank holds its own experts."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnx.parser
import pytest

import moec
from moec.common.errors import MoecError, RoomError
from moec.distributed.exchange import RowExchange
from moec.distributed.generation import generate
from moec.distributed.model import RankedModel
from moec.distributed.pair import ProgramPair
from moec.distributed.start import loaded
from moec.placing.volume import TRANSPORTS
from moec.runtime.artifact import open_artifact
from moec.runtime.load_options import LoadOptions
from moec.tools.evaluate import evaluate
from tests.distributed.gloo import group_of, start_ranks
from tests.language_model import UNITS, VOCABULARY, WIDTH, language_model, some_tokens
from tests.plans import plan_file
from tests.products import thinned

SIZES = [0, 1, 3, 64, 420]
"""Numbers of sequences; the last one is worth halves on four ranks."""
PROMPTS = [[1, 2, 3], [4], [5] * 9, [6, 7], [8]]
HEADER = '<ir_version: 10, opset_import: ["" : 21, "moec" : 1]> '
EXPERT_BYTES = 3 * WIDTH * UNITS * 4
UNEVEN = [[[], [0, 1, 2, 3, 4, 5, 6, 7], [3, 0], [7]], [[0, 7], [1, 6], [2, 5], [3, 4]]]
"""Slots of two layers of eight experts: one rank has none, one has all, and some are on two or three."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Artifacts of one model: ``plain``, and placed on ``2`` and ``4`` ranks."""
    path = tmp_path_factory.mktemp("placed")
    model = language_model(path / "m.onnx")
    some_tokens(path / "data.npz")
    moec.compile(model).save(path / "plain")
    moec.compile(model, ranks=2).save(path / "2")
    moec.compile(model, plan=plan_file(path / "uneven.json", model, UNEVEN)).save(path / "4")
    return path


def ids_of(sequences: int) -> np.ndarray:
    return np.random.default_rng(sequences).integers(0, VOCABULARY, (sequences, 5))


def everything(model: moec.CompiledModel, folder: pathlib.Path) -> dict[str, Any]:
    """Use a model in all ways, and return what they do."""
    spoken: list[tuple[int, str]] = []
    texts = generate(model, PROMPTS, max_new_tokens=4, temperature=0.7, on_text=lambda *said: spoken.append(said))
    few = generate(model, PROMPTS[:1], max_new_tokens=2)
    evaluation = evaluate([model], [folder / "data.npz"], metrics=["loss", "top1"])
    return {
        "outputs": [model.run({"ids": ids_of(size)})["y"] for size in SIZES],
        "texts": [text.ids for text in (*texts, *few)],
        "evaluation": json.loads(json.dumps(evaluation.as_data()))["models"],
        "experts": model.expert_bytes,
    }


def on_a_rank(rank: int, path: pathlib.Path) -> dict[str, Any]:
    """Use the model on a rank, and count how often it runs two halves in turn."""
    pairs = mock.Mock(side_effect=ProgramPair.in_turn)
    with (
        loaded(path, threads=1) as model,
        mock.patch.object(ProgramPair, "in_turn", lambda *works: pairs(*works)),
        mock.patch.object(ProgramPair, "pays", rank == 1),  # one rank says it for all
    ):
        return everything(model, path.parent) | {"pairs": pairs.call_count}


@pytest.fixture(scope="module")
def alone(folder) -> dict[str, Any]:
    return everything(moec.load(folder / "plain", threads=1), folder)


@thinned("size", [4, 2], 2)
def test_ranks_compute_what_one_process_does(folder, alone, size):
    everybody = start_ranks(size, on_a_rank, folder / str(size)).results()
    for found in everybody:
        assert all(map(np.array_equal, found["outputs"], alone["outputs"]))
        assert found["texts"] == alone["texts"]
        assert found["evaluation"] == alone["evaluation"]
        assert found["pairs"] == 1, "the last size alone is worth it"
    slots = open_artifact(folder / str(size)).manifest.placement.layers
    held = [sum(len(layer.slots[rank]) for layer in slots) for rank in range(size)]
    assert [found["experts"] for found in everybody] == [count * EXPERT_BYTES for count in held]


def test_a_placed_artifact_in_one_process_computes_the_same(folder, alone):
    found = everything(moec.load(folder / "4", threads=1), folder)
    assert all(map(np.array_equal, found["outputs"], alone["outputs"])) and found["texts"] == alone["texts"]


@pytest.mark.parametrize(
    ("artifact", "ranks", "options", "message"),
    [
        ("plain", 2, {}, "plain: is for one process; compile it with --ranks"),
        ("2", 4, {}, "is for 2 ranks, and 4 were started"),
        ("2", 1, {}, "is for 2 ranks, and 1 were started"),
        ("2", 2, {"prefer_resident": 0.1}, "prefer_resident"),
        ("2", 2, {"emulate": True}, "is compiled for cpu, which needs no emulation"),
    ],
)
def test_ranks_refuse(folder, monkeypatch, artifact, ranks, options, message):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    with pytest.raises(MoecError, match=message), loaded(folder / artifact, **options):
        pass


def streamed(rank: int, path: pathlib.Path, ids: np.ndarray) -> tuple[list[np.ndarray], int]:
    """Outputs of single tokens on ranks that have room for two experts, and the bytes read meanwhile. All at once need
    more."""
    resident = (path / "weights.bin").stat().st_size - 14 * EXPERT_BYTES
    refused = pytest.raises(MoecError, match=r"experts of .* are chosen in one run")
    with refused as error, loaded(path, threads=1, resident=resident) as model:
        outputs = [model.run({"ids": token[None, None]})["y"] for token in ids]
        assert model.streamed is not None
        read = model.streamed.bytes_read
        model.run({"ids": ids[None]})
    assert not isinstance(error.value, RoomError)
    return outputs, read


@pytest.mark.nightly
def test_ranks_read_experts_when_chosen(folder):
    moec.compile(folder / "m.onnx", ranks=2, resident="1MiB").save(folder / "resident")
    ids, plain = ids_of(4).ravel(), moec.load(folder / "plain", threads=1)
    for outputs, read in start_ranks(2, streamed, folder / "resident", ids).results():
        assert all(
            np.array_equal(y, plain.run({"ids": id[None, None]})["y"]) for y, id in zip(outputs, ids, strict=True)
        )
        assert read > 8 * EXPERT_BYTES


BLOCK = """(float[T,8] x) => (float[T,8] y, float total) <float[8,4] router, float[4,6,8] up, float[4,8,6] down> {
    logits = MatMul (x, router)
    y = moec.MoE <k = 2, gate_layout = "none"> (x, logits, , up, down)
    total = ReduceSum <keepdims = 0> (y)
}"""
MASKED = """(int64[batch,seq] ids, float[rows,seq] attention_mask, int64[1,seq] position_ids) => (float[batch,seq,8] y)
    <float[9,8] table, float[8,4] router, float[4,6,8] up, float[4,8,6] down> {
    embedded = Gather (table, ids)
    last = Constant <value_ints = [-1]> ()
    mask = Unsqueeze (attention_mask, last)
    count = Cast <to = 1> (position_ids)
    places = Unsqueeze (count, last)
    placed = Add (embedded, places)
    masked = Mul (placed, mask)
    shape = Shape (masked)
    width = Constant <value_ints = [-1, 8]> ()
    x = Reshape (masked, width)
    logits = MatMul (x, router)
    z = moec.MoE <k = 2, gate_layout = "none"> (x, logits, , up, down)
    y = Reshape (z, shape)
}"""
"""Models that are not split by one size of their inputs: a block of tokens, and a mask whose rows have another name,
beside positions of all sequences."""


def runs(rank: int, path: pathlib.Path, cases: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    with loaded(path, threads=1) as model:
        assert model.streamed is None
        return [model.run(case) for case in cases]


@thinned("text", [MASKED, BLOCK], 2, ids=["masked", "block"])
def test_inputs_of_other_forms(tmp_path, text):
    model = with_random_weights(text)
    random, cases = np.random.default_rng(1), []
    for count, rows in ((0, 0), (1, 1), (5, 5), (3, 1), (4, 1)):  # one row of a mask is for all sequences
        x = random.standard_normal((max(count, rows), 8)).astype(np.float32)
        ids, mask = random.integers(0, 9, (count, 3)), (x[:rows, :3] > 0).astype(np.float32)
        whole = {"ids": ids, "attention_mask": mask, "position_ids": np.arange(3)[None]}
        cases.append({"x": x} if text is BLOCK else whole)
    plain = moec.compile(model)
    moec.compile(model, ranks=2).save(tmp_path / "2")
    assert open_artifact(tmp_path / "2").manifest.sequences == (None if text is BLOCK else "batch")
    for found in start_ranks(2, runs, tmp_path / "2", cases).results():
        for actual, case in zip(found, cases, strict=True):
            expected = plain.run(case)
            assert all(np.array_equal(actual[name], expected[name]) for name in expected)


def with_random_weights(text: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(HEADER + "model " + text)
    random = np.random.default_rng(0)
    for weight in model.graph.value_info:
        shape = [size.dim_value for size in weight.type.tensor_type.shape.dim]
        array = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, weight.name))
    model.graph.ClearField("value_info")
    return model


def matrix(rank: int, paths: list[pathlib.Path], cases: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Outputs for all cases, for each placement and transport."""
    results = []
    with group_of(int(os.environ["WORLD_SIZE"])) as group:
        for path, transport in itertools.product(paths, TRANSPORTS):
            artifact = open_artifact(path)
            exchange = RowExchange(group, artifact.manifest.placement, transport)
            model = RankedModel(artifact, LoadOptions(threads=1), exchange)
            results.append([model.run({"ids": ids})["y"] for ids in cases])
    return results


def placements(size: int) -> list[list[list[int]]]:
    """Slots of eight experts on ranks: consecutive ones, all on the last one, and two replicas of each."""
    cuts = [8 * rank // size for rank in range(size + 1)]
    skewed = [[] for _ in range(size - 1)] + [list(range(7, -1, -1))]
    twice = [[expert for expert in range(8) if rank in (expert % size, (expert + 1) % size)] for rank in range(size)]
    return [[list(range(*pair)) for pair in itertools.pairwise(cuts)], skewed, twice]


@pytest.mark.nightly
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_bits_of_all_placements_and_transports(folder, tmp_path, size):
    paths = []
    for number, slots in enumerate(placements(size)):
        file, path = tmp_path / f"{number}.json", tmp_path / str(number)
        moec.compile(folder / "m.onnx", plan=plan_file(file, folder / "m.onnx", [slots, slots])).save(path)
        paths.append(path)
    shapes = [shape for tokens in (0, 1, 3, 64, 257) for shape in {(tokens, 1), (1, tokens), (tokens, 2)}]
    cases = [np.random.default_rng(place).integers(0, VOCABULARY, shape) for place, shape in enumerate(shapes)]
    plain = moec.load(folder / "plain", threads=1)
    expected = [plain.run({"ids": ids})["y"] for ids in cases]
    for results in start_ranks(size, matrix, paths, cases).results():
        assert len(results) == 3 * len(TRANSPORTS)
        assert all(np.array_equal(*pair) for found in results for pair in zip(found, expected, strict=True))
