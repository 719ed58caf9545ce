from __future__ import annotations

import json

import pytest

from moec.common.arguments import token_counts
from moec.common.errors import MoecError
from moec.tools.bench_session import bench_session
from moec.tools.tracing.file import read_trace
from tests.cli.test_cli import assert_refused, moec
from tests.runtime.bigrams import model_of


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    return model_of("abc", folder, output=folder / "model.moec"), folder / "model.moec"


def test_prompts_and_tokens_at_every_depth(model):
    steps = []
    result = bench_session(model[0], prefill=3, decode=2, depths=(0, 4), repetitions=2, progress=steps.append)
    named = [(test["test"], test["depth"], test["tokens"]) for test in result["tests"]]
    assert named == [("pp3", 0, 3), ("tg2", 0, 2), ("pp3", 4, 3), ("tg2", 4, 2)]
    for test in result["tests"]:
        rate = test["tokens_per_second"]
        assert len(test["seconds"]) == 2 and rate["min"] <= rate["median"] and rate["deviation"] >= 0
        assert rate["min"] == pytest.approx(test["tokens"] / max(test["seconds"]))
        assert test["shares"] is None or sum(test["shares"].values()) == pytest.approx(1)
    assert "filling a session with 4 tokens" in steps and len(steps) == 5
    (only,) = bench_session(model[0], decode=1, repetitions=1)["tests"]
    assert only["test"] == "tg1"


@pytest.mark.parametrize(
    "options", [{}, {"prefill": 0}, {"decode": -1}, {"decode": 1, "depths": (-1,)}, {"decode": 1, "depths": ()}]
)
def test_numbers_that_cannot_be_are_refused(model, options):
    with pytest.raises(MoecError, match="expected prefill, decode and repetitions from 1 up"):
        bench_session(model[0], **options)


def test_depths_are_numbers():
    assert token_counts("depth", "0, 2048") == [0, 2048]
    with pytest.raises(MoecError, match="depth is '1,-2'; expected numbers of tokens from 0 to"):
        token_counts("depth", "1,-2")


def test_the_command(model, tmp_path):
    path, trace = model[1], tmp_path / "trace.json"
    arguments = ("--prefill", 3, "--decode", 2, "--repetitions", 2, "--depth")
    done = moec("bench", path, *arguments, "0,4")
    assert (done.returncode, done.stderr) == (0, "")
    assert "pp3" in done.stdout and "tg2 @ d4" in done.stdout and "±" in done.stdout
    done = moec("bench", path, *arguments, 0, "--json", "--trace", trace)
    assert done.stderr.startswith(f"{trace} is written: open it in ui.perfetto.dev")
    assert [test["test"] for test in json.loads(done.stdout)["tests"]] == ["pp3", "tg2"]
    assert [run.title for run in read_trace(trace).runs] == ["Prompt of 3 tokens", "Decode step after 3 tokens"]
    done = moec("bench", path, "--depth", 1, "--repetitions", 1, "--json", "--trace", trace)
    assert read_trace(trace).runs[0].title == "Prompt of 512 tokens after 1 token"
    assert [test["test"] for test in json.loads(done.stdout)["tests"]] == ["pp512", "tg64"]
    assert_refused(moec("bench", path, "--decode", 2, "--against", "onnxruntime"), "--against and --inputs single runs")
    trace.write_text("{}")
    assert_refused(moec("bench", path, "--decode", 2, "--trace", trace), "is a file that moec did not write")
    assert trace.read_text() == "{}"
