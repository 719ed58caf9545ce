"""Sweeps of the language model: runs, reuse, and the front."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from moec.common.errors import MoecError
from moec.common.scratch import locked
from moec.tools.data import TextOptions
from moec.tools.evaluate import MetricValue, evaluate
from moec.tools.sweeping import runs, sweep, variants
from moec.tools.sweeping.driver import Sweep
from moec.tools.sweeping.file import Times, Variant, read_variants, write_variants
from moec.tools.sweeping.front import on_front
from moec.tools.sweeping.keys import Keys

from ...executors import Pickling
from ...language_model import language_model, some_tokens

PIPELINES = ["O2", "O2,quantize-experts{format=int4}"]
VARIANT = Variant(
    {"a": [None]}, "O2", 1, None, 3, {"loss": MetricValue(float("inf"), 0.5, None)}, {"x[1]": Times(1.0, 2.0)}
)


@pytest.fixture(scope="module", autouse=True)
def short_times():
    """Time each case of a variant for a moment; the numbers do not matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "_SECONDS", 0.02)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return language_model(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return some_tokens(tmp_path_factory.mktemp("data") / "data.npz")


@pytest.fixture(scope="module")
def swept(
    tmp_path_factory: pytest.TempPathFactory, model: pathlib.Path, data: pathlib.Path
) -> tuple[pathlib.Path, Sweep]:
    folder = tmp_path_factory.mktemp("sweep") / "made"
    return folder, sweep(model, [data], folder, PIPELINES, metrics=["loss", "kl"], threads=1, keep=True)


@pytest.fixture
def again(swept: tuple[pathlib.Path, Sweep], model: pathlib.Path, data: pathlib.Path) -> Callable[..., Sweep]:
    """Repeat the sweep with other ``pipelines``, ``data`` or options."""

    def run(pipelines: list[str], data: pathlib.Path = data, **options: Any) -> Sweep:
        return sweep(model, [data], swept[0], pipelines, **{"metrics": ["loss", "kl"], "threads": 1, **options})

    return run


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments, **_options):
        raise AssertionError("something was compiled")

    monkeypatch.setattr(runs.compiler, "write", refuse)


def test_variants_are_judged_against_the_first_and_timed(swept, data):
    folder, actual = swept
    first, second = actual.variants
    assert (actual.reused, actual.failures, actual.metric) == (0, {}, "loss")
    assert (first.expert_bits, second.expert_bits) == (32, 4)
    assert second.weight_bytes < first.weight_bytes / 2
    assert first.qualities["kl"].value == 0 == first.qualities["loss"].difference
    judged = evaluate([folder / first.artifact, folder / second.artifact], [data], metrics=["loss", "kl"])
    assert [model.qualities for model in judged.models][1] == second.qualities
    assert list(second.times) == ["ids[1, 1]", "ids[4, 97]"]
    assert all(times.milliseconds > 0 and times.first > 0 for times in second.times.values())
    assert actual.fronts()["weights, bytes"] == [True, True]


def test_what_is_known_does_not_run_again(swept, again, no_compiler):
    for pipelines in (PIPELINES, PIPELINES[:1]):
        actual = again(pipelines)
        assert actual.reused == len(pipelines)
        assert actual.variants == swept[1].variants[: len(pipelines)]


def test_other_data_settings_and_pipelines_run(again, data, no_compiler, tmp_path):
    other = tmp_path / "other.npz"
    np.savez(other, ids=np.load(data)["ids"][:3])
    for changed in (
        lambda: again(PIPELINES, other),
        lambda: again(PIPELINES, metrics=["loss"]),
        lambda: again(PIPELINES, text=TextOptions(length=8)),
        lambda: again([PIPELINES[0], "O1"]),
    ):
        with pytest.raises(MoecError, match="something was compiled"):
            changed()


def test_a_key_tells_changed_files_apart(model, data, tmp_path):
    profile = tmp_path / "p.moeprof"
    profile.write_bytes(b"one")
    pipeline = f"O2,assign-bits{{avg=3,profile={profile}}}"
    keys = [Keys(model, [data], None, TextOptions(), {"metrics": []}).of(pipeline)]
    profile.write_bytes(b"two")
    keys.append(Keys(model, [data], None, TextOptions(), {"metrics": []}).of(pipeline))
    keys.append(Keys(model, [data], data, TextOptions(), {"metrics": []}).of(pipeline))
    assert keys[0] != keys[1] != keys[2]
    assert keys[1] == Keys(model, [data], None, TextOptions(), {"metrics": []}).of(pipeline)
    assert json.loads(json.dumps(keys)) == keys


def test_an_interrupted_sweep_goes_on_where_it_stopped(model, data, tmp_path, monkeypatch, swept):
    compiled = []
    write = runs.compiler.write

    def interrupted(model, path, options):
        compiled.append(options.passes)
        if len(compiled) == 2:
            raise KeyboardInterrupt
        return write(model, path, options)

    monkeypatch.setattr(runs.compiler, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(model, [data], tmp_path, PIPELINES, threads=1)
    assert [variant.pipeline for variant in read_variants(tmp_path)] == PIPELINES[:1]
    actual = sweep(model, [data], tmp_path, PIPELINES, threads=1)
    assert actual.reused == 1
    assert compiled[2:] == [PIPELINES[0], PIPELINES[1]]  # the first, to compare with
    assert actual.variants[1].qualities["loss"] == swept[1].variants[1].qualities["loss"]
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


def untimed(variants: list[Variant]) -> list[dict[str, Any]]:
    return [{**dataclasses.asdict(variant), "times": sorted(variant.times), "artifact": None} for variant in variants]


class Losing(Pickling):
    """An executor of two threads that loses the jobs of pipelines with ``int3``."""

    def submit(self, function, /, *arguments):
        lost = "int3" in str(arguments)
        return super().submit(signal.strsignal, "none") if lost else super().submit(function, *arguments)


def test_a_sweep_on_an_executor_is_the_same_and_goes_on_where_it_stopped(model, data, tmp_path, monkeypatch, swept):
    """The second variant is timed when all are judged; then the sweep is interrupted. The third is lost twice."""
    time, timed, options = runs.VariantWork.time, [], {"metrics": ["loss", "kl"], "threads": 1}
    pipelines = [*PIPELINES, "O2,quantize-experts{format=int3}"]

    def interrupted(work, path, first):
        timed.append(path.name)
        if len(timed) == 2:
            raise KeyboardInterrupt
        return time(work, path, first)

    monkeypatch.setattr(runs.VariantWork, "time", interrupted)
    with Losing() as executor:
        with pytest.raises(KeyboardInterrupt):
            sweep(model, [data], tmp_path, pipelines, executor=executor, **options)
        first, second = read_variants(tmp_path)
        assert first.times and first.artifact is None and not second.times
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([second.artifact, "sweep.json"])
        compiled, write = [], runs.compiler.write
        monkeypatch.setattr(
            runs.compiler, "write", lambda *arguments: (compiled.append(arguments[2].passes), write(*arguments))
        )
        actual = sweep(model, [data], tmp_path, pipelines, executor=executor, **options)
    assert compiled == PIPELINES[:1], "which the others are timed with"
    assert untimed(actual.variants) == untimed(swept[1].variants) == untimed(read_variants(tmp_path))
    ((lost, why),) = actual.failures.items()
    assert lost == pipelines[2] and re.match(r"variant O2,quan.*int3}: the process that ran it ended twice \(.+\)", why)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


def test_two_sweeps_in_one_folder_are_refused(model, data, tmp_path):
    lock = locked(tmp_path, wait=False)
    try:
        with pytest.raises(MoecError, match=r"another sweep is at work there; wait for it, or choose another folder"):
            sweep(model, [data], tmp_path, PIPELINES)
    finally:
        os.close(lock)
    assert list(tmp_path.iterdir()) == []


def test_a_variant_that_cannot_be_made_is_noted(again):
    actual = again([PIPELINES[0], "O2,quantize-experts{format=int4,group=7,experts=90}"])
    assert len(actual.variants) == 1
    assert "90" in next(iter(actual.failures.values()))


def test_files_of_others_are_refused(model, data, tmp_path, swept):
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(MoecError, match=r"sweep.json: is a file that moec did not write"):
        sweep(model, [data], tmp_path, PIPELINES)
    text = (swept[0] / "sweep.json").read_text()
    (tmp_path / "sweep.json").write_text(text.replace('"weight_bytes": ', '"weight_bytes": 1'))
    with pytest.raises(MoecError, match="was changed since moec wrote it"):
        sweep(model, [data], tmp_path, PIPELINES)
    assert json.loads(text)["version"] == 2
    with pytest.raises(MoecError, match="no such file; expected an ONNX model"):
        sweep(tmp_path / "none.onnx", [data], tmp_path / "other", PIPELINES)
    assert not (tmp_path / "other").exists()


def test_numbers_that_json_lacks_come_back(tmp_path):
    write_variants(tmp_path, [VARIANT])
    assert read_variants(tmp_path) == [VARIANT]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": {"x[1]": Times(1.0, 0.0)}}, r"times.x\[1\].first is 0.0; expected a positive number; remove it"),
        ({"qualities": {}}, "qualities is an object; expected values of loss"),
        ({"qualities": {"colour": MetricValue(1.0, None, None)}}, "qualities is an object; expected values of loss"),
    ],
)
def test_numbers_that_no_sweep_finds_are_refused(tmp_path, changes, message):
    write_variants(tmp_path, [dataclasses.replace(VARIANT, **changes)])
    with pytest.raises(MoecError, match=message):
        read_variants(tmp_path)


def test_variants_of_other_cases_do_not_compare():
    assert VARIANT.compares_with([]) and VARIANT.compares_with([VARIANT])
    assert not VARIANT.compares_with([dataclasses.replace(VARIANT, times={})])
    assert not VARIANT.compares_with([dataclasses.replace(VARIANT, qualities={})])


def test_the_front_is_what_no_other_beats():
    assert on_front([(1, 5), (2, 4), (2, 5), (3, 4), (None, 0), (9, 1), (0, float("nan"))]) == [
        True, True, False, False, False, True, False,
    ]  # fmt: skip
    assert on_front([(1, 1), (1, 1)]) == [True, True]
    assert on_front([]) == []


def test_more_of_top1_is_better():
    def variant(top1: float, size: int) -> Variant:
        return Variant({}, "O2", size, None, 0, {"top1": MetricValue(top1)}, {})

    assert Sweep([variant(0.9, 2), variant(0.8, 1), variant(0.7, 1)]).fronts()["weights, bytes"] == [True, True, False]


def test_pipelines_are_products_of_what_is_asked():
    assert variants(formats=["int4/32", "bf16"], methods=["rtn", "gptq"], profile="p") == [
        "O2",
        "O2,quantize-experts{format=int4,group=32}",
        "O2,quantize-experts{format=int4,group=32,method=gptq,profile=p}",
        "O2,cast-weights{dtype=bf16}",
    ]
    assert variants(["O1", "O2"], averages=["3"], methods=["gptq"], profile="p") == [
        "O2",
        "O2,assign-bits{avg=3,method=gptq,profile=p}",
        "O1",
    ]
    assert len(variants()) == 5
    assert len(variants(profile="p")) == 1 + 4 * 2 + 5 * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"averages": ["3"]}, "avg=3 needs a profile; add --profile FILE"),
        ({"methods": ["gptq"]}, "gptq needs a profile"),
        ({"formats": ["int7"]}, "no format 'int7'"),
        ({"formats": ["int4"], "methods": ["best"], "profile": "p"}, "is 'best'; expected one of rtn, gptq"),
        ({"passes": ["O9"]}, "unknown pass 'O9'"),
    ],
)
def test_what_no_pipeline_can_say_is_refused(options, message):
    with pytest.raises(MoecError, match=message):
        variants(**options)
