from __future__ import annotations

import dataclasses

import pytest

import moec
from moec.common.errors import MoecError, UnsupportedError
from moec.common.roofline import Roofline
from moec.exploring.streaming import streaming
from moec.inspect.streams import streaming_tables
from moec.runtime.artifact import Artifact, open_artifact
from moec.targets.cpu.kind import CpuKind
from moec.tools import stream_speed
from moec.tools.stream_speed import DECODING, GUESSED, StreamSpeed, predict_speed, stream_plan
from tests.language_model import language_model

EXPERT = 48 * 64 * 4 * 3


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Artifact:
    """Make two layers of eight experts, of which a token selects two, with memory for four of the sixteen."""
    path = tmp_path_factory.mktemp("speed")
    moec.compile(language_model(path / "model.onnx"), resident="1MiB", output=path / "model.moec")
    opened = open_artifact(path / "model.moec")
    assert opened.manifest.plan is not None
    resident = stream_plan(opened).pinned + 4 * EXPERT
    opened.manifest.plan = dataclasses.replace(opened.manifest.plan, resident=resident)
    return opened


@pytest.fixture(autouse=True)
def bandwidth(monkeypatch):
    measured = Roofline(1, {"4K pages": 10e9, "huge pages": 12e9}, ())
    monkeypatch.setattr(CpuKind, "measure_roofline", lambda _self, _threads: measured)
    monkeypatch.setattr(stream_speed, "_MEASURED_SECONDS", 0.01)


def test_what_is_chosen_and_not_there_is_read(artifact):
    speed = predict_speed(artifact)
    plan = stream_plan(artifact)
    assert speed.disk_bytes == pytest.approx(4 * EXPERT * 12 / 16)  # all are equally likely, and a quarter is in memory
    assert speed.memory_bytes == sum(end - start for start, end in plan.others) + 4 * EXPERT
    assert (speed.there, speed.memory_bandwidth) == (pytest.approx(1 / 4), 10e9)
    assert predict_speed(artifact, plan.pinned + 16 * EXPERT).disk_bytes == 0


def test_shares_say_what_is_kept(artifact):
    always = [[1.0, 1.0, *[0.0] * 6]] * 2
    assert predict_speed(artifact, shares=always).disk_bytes == 0
    often = [[0.9, 0.7, 0.4, *[0.0] * 5]] * 2
    assert predict_speed(artifact, shares=often).disk_bytes == pytest.approx(2 * 0.4 * EXPERT)


def test_what_was_guessed_is_read_meanwhile():
    speed = StreamSpeed(0.5, memory_bytes=DECODING * 3e9, disk_bytes=4e9, memory_bandwidth=1e9, disk_bandwidth=1e9)
    assert speed.seconds == pytest.approx(3 + 4 - GUESSED * 3)
    assert speed.as_data()["tokens_per_second"] == pytest.approx(1 / speed.seconds)
    assert dataclasses.replace(speed, disk_bytes=0).seconds == pytest.approx(3)


def test_inspect_shows_plan_and_prediction(artifact):
    actual = streaming(artifact)
    assert actual is not None and actual["room"] == 4 * EXPERT and actual["speed"]["predicted"]
    assert actual["replaceable"] == 2
    *_, line = streaming_tables(actual)
    assert "predicted: " in str(line) and "25% of the chosen experts in memory" in str(line)


def test_what_cannot_be_predicted(artifact, tmp_path):
    with pytest.raises(MoecError, match="are too few for its weights"):
        predict_speed(artifact, 1000)
    whole = moec.compile(language_model(tmp_path / "model.onnx")).artifact
    assert streaming(whole) is None
    with pytest.raises(UnsupportedError, match="has all weights in memory; compile it again with --resident"):
        predict_speed(whole, 1000)
