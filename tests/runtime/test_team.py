"""Teams: every part of a loop is computed once, by any thread, whether workers are awake or asleep."""

from __future__ import annotations

import sys
import threading
import time

import numpy as np
import pytest

import moec
from moec.common.errors import ArtifactError, MoecError
from moec.runtime import team as teams
from moec.runtime import workers
from moec.runtime.team import TEAM_OBJECT, LoopTimes, Team

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="teams wait by Linux's futex")

TEXT = """<ir_version: 10, opset_import: ["" : 24]>
graph (float[T,N] x) => (float[T,N] y, float[T,N] z) { a = Exp (x) y = Softmax (a) b = Transpose <perm = [1, 0]> (y)
  c = Softmax <axis = 0> (b) z = Transpose <perm = [1, 0]> (c) }"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> moec.CompiledModel:
    import onnx.parser

    path = tmp_path_factory.mktemp("team") / "model.moec"
    moec.compile(onnx.parser.parse_model(TEXT), output=path)
    return moec.load(path, threads=1)


def executor_of(model: moec.CompiledModel):
    return model._executor


def run_in(model: moec.CompiledModel, team: Team | None, values: np.ndarray) -> dict[str, np.ndarray]:
    """Run the model on the calling thread, with the workers of a team."""
    program = executor_of(model)._program
    program._join(0 if team is None else team.address)
    program._joined = None  # the team that the executor will ask for, so that it leaves this one alone
    return model.run({"x": values})


def new_team(model: moec.CompiledModel, count: int, looks: int, monkeypatch) -> Team:
    monkeypatch.setattr(teams, "_LOOKS", looks)
    return Team(count, executor_of(model)._program._team_code)


def end(team: Team) -> None:
    """Let workers leave; sleeping ones leave with the next job."""
    team._memory[264:268].view(np.uint32)[0] = 1


@pytest.mark.parametrize("looks", [0, 20_000], ids=["asleep", "awake"])
@pytest.mark.parametrize("count", [2, 5])
def test_results_are_those_of_one_thread(model, count, looks, monkeypatch):
    random = np.random.default_rng(0)
    team = new_team(model, count, looks, monkeypatch)
    for size in (1, 7, 300):
        values = random.standard_normal((size, 100), dtype=np.float32)
        expected = run_in(model, None, values)
        for number in range(40):
            actual = run_in(model, team, values)
            for name in expected:
                np.testing.assert_array_equal(actual[name], expected[name])
            if number % 10 == 0:
                time.sleep(0.002)  # workers fall asleep
    end(team)
    run_in(model, team, values)
    run_in(model, None, values)


def test_workers_take_part(model, monkeypatch):
    """Their processor time grows: with one launching thread, another thread must have computed."""
    before = set(threading.enumerate())
    team = new_team(model, 2, 20_000, monkeypatch)
    started = [thread for thread in threading.enumerate() if thread not in before]
    assert [thread.name for thread in started] == ["moec-2-1"]
    values = np.ones((2000, 1000), np.float32)
    clock = time.pthread_getcpuclockid(started[0].ident)
    start = time.perf_counter()
    with team.clocked() as times:
        for _ in range(20):
            run_in(model, team, values)
    assert time.clock_gettime(clock) > 0.001
    assert 0 < times.at_parts < times.in_loops < time.perf_counter() - start
    with team.clocked() as nothing:
        pass
    assert nothing == LoopTimes()
    end(team)
    run_in(model, team, values)
    run_in(model, None, values)


def test_a_number_of_threads_has_one_team_for_all_programs(model):
    code = executor_of(model)._program._team_code
    assert code.name == TEAM_OBJECT
    assert workers.team_here(code) is None
    first, second = (workers.run_with(2, lambda: workers.team_here(code)) for _ in range(2))
    assert first is second is not None


def test_code_that_is_no_object_file(tmp_path):
    path = tmp_path / TEAM_OBJECT
    path.write_bytes(b"no object file")
    with pytest.raises(ArtifactError, match="cannot be linked"):
        Team(2, path)


def test_too_few_threads_are_one_line(model, monkeypatch):
    class Refused(threading.Thread):
        def start(self):
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(teams.threading, "Thread", Refused)
    with pytest.raises(MoecError, match=r"3 threads cannot be started.*use threads=1"):
        Team(3, executor_of(model)._program._team_code)
