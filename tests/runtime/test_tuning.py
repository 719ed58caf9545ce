"""The file of measured crossovers: kept by kind of processor, merged, safe under concurrent use."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from moec.common.errors import MoecError
from moec.runtime import tuning
from moec.runtime.tuning import NEVER, read_tuned, store_tuned, tuning_file


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> pathlib.Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_values_are_merged_and_read_back(cache):
    assert read_tuned() == {}
    assert store_tuned({"crossover.a": 4}) == tuning_file()
    store_tuned({"crossover.b": NEVER, "crossover.a": 5})
    assert read_tuned() == {"crossover.a": 5, "crossover.b": NEVER}
    assert tuning_file().is_relative_to(cache)
    assert [path.suffix for path in tuning_file().parent.iterdir() if path.suffix != ".lock"] == [".json"]


def test_other_processors_have_other_files(monkeypatch):
    store_tuned({"crossover.a": 4})
    monkeypatch.setattr(tuning, "cpu_name", lambda: "another")
    assert read_tuned() == {}


def test_every_kind_of_gpu_has_a_file(monkeypatch):
    store_tuned({"crossover.a": 4}, "a GPU")
    assert read_tuned() == read_tuned("another GPU") == {}
    monkeypatch.setattr(tuning, "cpu_name", lambda: "another")
    assert read_tuned("a GPU") == {"crossover.a": 4}


def test_without_a_cache_folder_of_ones_own(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification says to ignore it
    assert tuning_file().is_relative_to(pathlib.Path.home() / ".cache" / "moec")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"crossovers": 3}', '{"crossovers": {"a": 0}}', "[" * 9999])
def test_a_damaged_file_is_refused(text):
    store_tuned({"crossover.a": 4})
    tuning_file().write_text(text)
    with pytest.raises(MoecError, match="remove it, and run moec tune again"):
        read_tuned()


def test_a_pipe_is_not_waited_for():
    store_tuned({"crossover.a": 4})
    tuning_file().unlink()
    os.mkfifo(tuning_file())
    with pytest.raises(MoecError, match="is a pipe; expected a plain file"):
        read_tuned()


def test_a_folder_that_cannot_be_written(cache):
    cache.write_text("a file")
    with pytest.raises(MoecError, match=r"cannot be written: .*; set XDG_CACHE_HOME"):
        store_tuned({"crossover.a": 4})


def test_processes_that_write_at_once_lose_nothing(cache):
    script = "import sys; from moec.runtime.tuning import store_tuned\n"
    script += "for i in range(20): store_tuned({f'crossover.{sys.argv[1]}.{i}': i + 1})"
    processes = [subprocess.Popen([sys.executable, "-c", script, name]) for name in "abc"]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert read_tuned() == {f"crossover.{name}.{i}": i + 1 for name in "abc" for i in range(20)}
    json.loads(tuning_file().read_text())
