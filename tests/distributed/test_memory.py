"""Memory of a rank: its experts and the dense part; of a stage: its layers. Large models run on two processes."""

from __future__ import annotations

import dataclasses
import pathlib
import resource

import numpy as np
import pytest

import moec
from moec.common.errors import MoecError
from moec.distributed.start import loaded
from moec.runtime.artifact import open_artifact
from moec.runtime.manifest import WEIGHTS
from tests.distributed.gloo import start_ranks
from tests.language_model import VOCABULARY, language_model

STATUS = pathlib.Path("/proc/self/status")
IDS = np.random.default_rng(0).integers(0, VOCABULARY, (4, 8))
WIDTH, UNITS = 512, 2048
EXPERT = 3 * WIDTH * UNITS * 4
HALF = 8 * EXPERT
"""Bytes of one rank's experts, of two layers, and of one stage's, of one layer."""

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(not STATUS.exists(), reason="memory is measured and limited as Linux does it"),
]


@dataclasses.dataclass(frozen=True)
class Used:
    """Results of a run, and the bytes of memory that the process took for it and for loading the model: resident
    pages, private and of files."""

    y: np.ndarray
    bytes: int


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Artifacts for two ranks: ``large``, and a ``small`` one, which loads all libraries; for two stages: ``staged``
    and ``small staged``."""
    path = tmp_path_factory.mktemp("memory")
    moec.compile(language_model(path / "small.onnx"), ranks=2, output=path / "small", threads=1)
    moec.compile(language_model(path / "large.onnx", WIDTH, UNITS), ranks=2, output=path / "large", threads=1)
    moec.compile(path / "small.onnx", stages=2, output=path / "small staged", threads=1)
    moec.compile(path / "large.onnx", stages=2, output=path / "staged", threads=1)
    return path


def status(name: str) -> int:
    """Bytes of an entry of the process' status."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def used(path: pathlib.Path, more_data: int | None = None, small: str = "small", large: str = "large") -> Used:
    """Run a large artifact on a rank, or alone. ``more_data``: bytes that the process may have beyond those in use
    (RLIMIT_DATA: private memory that can be written to)."""
    with loaded(path / small, threads=1) as model:
        model.run({"ids": IDS})
    if more_data is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + more_data,) * 2)
    before = status("VmRSS")
    with loaded(path / large, threads=1) as model:
        y = model.run({"ids": IDS})["y"]
        return Used(y, status("VmRSS") - before)


def used_by_rank(rank: int, path: pathlib.Path, more_data: int | None = None) -> Used:
    return used(path, more_data)


def used_by_stage(rank: int, path: pathlib.Path) -> Used:
    return used(path, small="small staged", large="staged")


def refused(rank: int, path: pathlib.Path, more_data: int) -> str:
    """Message of one process, without ranks, that cannot have so much memory."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(MoecError) as error:
        patch.delenv("RANK")
        used(path, more_data)
    return str(error.value)


def test_a_rank_takes_memory_for_its_experts_and_the_dense_part(folder):
    dense = (folder / "large" / WEIGHTS).stat().st_size - 2 * HALF
    for rank in start_ranks(2, used_by_rank, folder).results():
        assert HALF + dense < rank.bytes < 1.1 * (HALF + dense)


def test_a_stage_takes_memory_for_its_layers_and_what_stages_share(folder):
    shared = (folder / "staged" / WEIGHTS).stat().st_size - 2 * HALF
    expected = moec.load(folder / "staged", threads=1).run({"ids": IDS})["y"]
    for stage in start_ranks(2, used_by_stage, folder).results():
        assert HALF < stage.bytes < 1.1 * (HALF + shared)
        assert np.array_equal(stage.y, expected)


def test_experts_that_exceed_the_memory_of_one_process_run_on_two(folder):
    allowed = HALF + HALF // 2
    (message,) = start_ranks(1, refused, folder, allowed).results()
    assert "the system gives this process no memory for weights of 19" in message
    expected = moec.load(folder / "large", threads=1).run({"ids": IDS})["y"]
    for rank in start_ranks(2, used_by_rank, folder, allowed).results():
        assert np.array_equal(rank.y, expected)


def test_two_processes_with_less_than_their_experts_need_are_refused(folder):
    ranks = start_ranks(2, used_by_rank, folder, HALF // 2)
    assert set(ranks.codes(60)) == {2}
    assert all("the system gives this process no memory for weights" in said for said in ranks.said())


def test_a_rank_copies_its_own_experts_alone_into_huge_pages(folder):
    artifact = open_artifact(folder / "large")
    (program,) = artifact.manifest.programs
    before = status("VmRSS")
    try:
        weights, placement, _ = artifact.weights(program, "huge", rank=1)
    except MoecError as error:
        pytest.skip(str(error))
    assert placement.pages == "huge" and len(weights) == len(program.weights)
    assert status("VmRSS") - before < 1.1 * HALF
