"""Every tool that takes workers and executors, on each kind of them: bytes are those of one process."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

import moec
from moec.common.errors import MoecError
from moec.common.jobs import Job, job_runner
from moec.tools.sweeping import runs
from moec.tools.sweeping.file import Times

from ..executors import executor_of
from ..language_model import language_model, some_tokens

pytestmark = pytest.mark.nightly
PLACES: dict[str, dict[str, Any]] = {"one worker": {"workers": 1}, "two workers": {"workers": 2}}
LIBRARIES = ["concurrent.futures", "dask", "ray"]
KILLED = "__import__('signal').raise_signal(9)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Make m.onnx, d.npz and p.moeprof."""
    folder = tmp_path_factory.mktemp("model")
    language_model(folder / "m.onnx"), some_tokens(folder / "d.npz")
    moec.profile(folder / "m.onnx", [folder / "d.npz"], folder / "p.moeprof", formats="int4/32")
    return folder


@pytest.fixture(scope="module", params=[*PLACES, *LIBRARIES])
def place(request):
    """Options that say where jobs run."""
    if request.param in PLACES:
        yield PLACES[request.param]
        return
    with executor_of(request.param) as executor:
        yield {"executor": executor}


def profiled(folder: pathlib.Path, output: pathlib.Path, **place: Any) -> bytes:
    moec.profile(folder / "m.onnx", [folder / "d.npz"], output / "p", formats="int4/32,int8", **place)
    return (output / "p").read_bytes()


def compiled(folder: pathlib.Path, output: pathlib.Path, **place: Any) -> dict[str, bytes]:
    profile = folder / "p.moeprof"
    passes = f"O2,quantize-experts{{format=int4,down=int8,method=gptq,profile={profile}}}"
    moec.compile(folder / "m.onnx", passes=passes, output=output / "a", **place)
    return contents(output / "a")


def contents(artifact: pathlib.Path) -> dict[str, bytes]:
    """Contents of the files."""
    files = (path for path in artifact.rglob("*") if path.is_file())
    return {str(path.relative_to(artifact)): path.read_bytes() for path in files}


def evaluated(folder: pathlib.Path, output: pathlib.Path, **place: Any) -> Any:
    models = [folder / "m.onnx", output / "b"]
    moec.compile(folder / "m.onnx", experts="int4", output=models[1])
    evaluation = moec.evaluate(models, [folder / "d.npz"], metrics=["kl", "loss"], **place)
    return [dataclasses.replace(judged, name="") for judged in evaluation.models]


def swept(folder: pathlib.Path, output: pathlib.Path, **place: Any) -> Any:
    pipelines = ["O2", *(f"O2,quantize-experts{{format={form}}}" for form in ("int4", "int3", "int2"))]
    pipelines.append("O2,quantize-experts{format=int4,experts=90}")
    result = moec.sweep(folder / "m.onnx", [folder / "d.npz"], output / "s", pipelines, keep=True, **place)
    assert "expert 90" in result.failures[pipelines[4]]
    artifacts = [contents(output / "s" / str(variant.artifact)) for variant in result.variants]
    return (output / "s" / "sweep.json").read_bytes(), artifacts, result.failures


@pytest.mark.parametrize("made", [profiled, compiled, evaluated, swept], ids=lambda tool: tool.__name__)
def test_where_jobs_run_does_not_show(folder, place, made: Callable[..., Any], tmp_path, monkeypatch):
    monkeypatch.setattr(runs.VariantWork, "time", lambda *_: {"x[1]": Times(1.0, 2.0)})
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    assert made(folder, tmp_path / "there", **place) == made(folder, tmp_path / "here")


@pytest.mark.parametrize("library", ["dask", "ray"])
def test_a_process_that_ends_costs_its_job_alone(library):
    with executor_of(library) as executor, job_runner(executor=executor) as runner:
        jobs = [Job("first", eval, ("11",)), Job("layer 3", eval, (KILLED,)), Job("third", eval, ("33",))]
        outcomes = dict(runner.outcomes(jobs))
        assert (outcomes[0].value, outcomes[2].value) == (11, 33)
        with pytest.raises(MoecError, match=r"^layer 3: the process that ran it ended twice"):
            outcomes[1].result()
