"""Counts of chosen experts that stay between processes."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

import moec
from moec.common.array_files import write_arrays
from moec.common.errors import MoecError
from moec.common.specs import StreamedExpertsSpec, StreamedWeight
from moec.runtime.expert_counts import ExpertCounts
from moec.runtime.streaming import StreamPlan
from tests.command import moec as command
from tests.language_model import VOCABULARY, language_model

EXPERT = 48 * 64 * 4 * 3
IDS = np.random.default_rng(0).integers(0, VOCABULARY, (1, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Make two layers of eight experts, of which a token selects two, compiled to stream them."""
    path = tmp_path_factory.mktemp("counted")
    moec.compile(language_model(path / "model.onnx"), resident="1MiB", output=path / "model.moec")
    return path / "model.moec"


def room(folder: pathlib.Path) -> int:
    """Bytes for four experts, as many as a token selects, beside all that stays."""
    artifact = moec.load(folder).artifact
    (program,) = artifact.manifest.programs
    return StreamPlan.of(program.streamed, artifact.weight_entries(program)).pinned + 4 * EXPERT


def missed(folder: pathlib.Path, counts: pathlib.Path | None) -> int:
    # With a share of a billionth, nothing is read ahead, so that the number does not depend on time.
    model = moec.load(folder, resident=room(folder), prefer_resident=1e-9, keep_counts=counts)
    model.run({"ids": IDS})
    model.save_counts()
    assert model.streamed is not None
    return model.streamed.chosen - model.streamed.there


def test_the_next_process_begins_with_the_experts_that_were_chosen(folder, tmp_path):
    counts = tmp_path / "counts.npz"
    first = missed(folder, counts)
    assert first > 0 and counts.exists()
    assert missed(folder, None) == first  # without the file nothing is known
    assert missed(folder, counts) == 0


def test_processes_add_to_the_file(tmp_path):
    layers = [StreamedExpertsSpec("m", 1, 2, (StreamedWeight(0, (0, 1, 2)),))]
    first, second = (ExpertCounts(tmp_path / "counts.npz", layers) for _ in range(2))
    for counts, chosen in ((first, [3, 0]), (second, [1, 2]), (first, [3, 0]), (first, [4, 0])):
        counts.add([np.array(chosen)])
    (total,) = ExpertCounts(tmp_path / "counts.npz", layers).before
    assert total.tolist() == [5, 2]


def test_nothing_is_written_where_nothing_was_chosen(folder, tmp_path):
    for resident in (room(folder), "1GiB"):  # with all in memory nothing is counted
        moec.load(folder, resident=resident, keep_counts=tmp_path / "counts.npz").save_counts()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"0:m": np.zeros(3, np.int64)}, "has counts of 1 layers that are not those of this model"),
        ({"0:other": np.zeros(2, np.int64)}, "not those of this model"),
        ({"0:m": np.zeros(2)}, "not those of this model"),
        ({"0:m": np.array([1, -1])}, "has a count that is none"),
        ({"0:m": np.array([1, 1 << 60])}, "has a count that is none"),
        (None, "is a file that moec did not write"),
    ],
)
def test_other_files_are_refused_and_stay(content, reason, tmp_path):
    path = tmp_path / "counts.npz"
    if content is None:
        path.write_text("mine")
    else:
        write_arrays(path, content)
    before = path.read_bytes()
    with pytest.raises(MoecError, match=reason):
        ExpertCounts(path, [StreamedExpertsSpec("m", 1, 2, (StreamedWeight(0, (0, 1, 2)),))])
    assert path.read_bytes() == before


def test_commands_keep_counts(folder, tmp_path):
    np.savez(tmp_path / "inputs.npz", ids=IDS)
    arguments = ("--inputs", tmp_path / "inputs.npz", "--outputs", tmp_path / "y.npz", "--resident", room(folder))
    counts = tmp_path / "counts.npz"
    assert command("run", folder, *arguments, "--keep-counts", counts).returncode == 0
    assert sum(array.sum() for array in np.load(counts).values()) == 4  # two experts in each of two layers
    counts.write_bytes(b"mine")
    refused = command("run", folder, *arguments, "--keep-counts", counts)
    assert refused.returncode == 2 and "is a file that moec did not write" in refused.stderr
    moec.compile(language_model(tmp_path / "model.onnx"), output=tmp_path / "whole.moec")
    refused = command("run", tmp_path / "whole.moec", *arguments[:4], "--keep-counts", tmp_path / "other.npz")
    assert refused.returncode == 2 and "was compiled to have all in memory" in refused.stderr
