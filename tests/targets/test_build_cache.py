"""The cache of programs that moec compiles."""

from __future__ import annotations

import os
import pathlib

import pytest

from moec.errors import MoecError
from moec.targets import build_cache
from moec.targets.build_cache import cached


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "moec" / "kind"


def never(_path: pathlib.Path) -> None:
    raise AssertionError("it is there already")


def test_a_file_is_made_once(folder):
    path = cached("kind", "one", lambda path: path.write_text("made"))
    assert path == folder / "one"
    assert cached("kind", "one", never).read_text() == "made"


def test_a_failure_leaves_nothing_behind(folder):
    def fail(path: pathlib.Path) -> None:
        path.write_text("half")
        raise MoecError("does not compile")

    with pytest.raises(MoecError, match="does not compile"):
        cached("kind", "one", fail)
    assert list(folder.iterdir()) == []


def test_what_was_not_asked_for_the_longest_is_forgotten(folder, monkeypatch):
    monkeypatch.setattr(build_cache, "_MOST_BYTES", 2)
    for age, name in enumerate(("old", "older", "oldest")):
        os.utime(cached("kind", name, lambda path: path.write_text("x")), (1000 - age, 1000 - age))
    cached("kind", "new", lambda path: path.write_text("x"))
    assert sorted(file.name for file in folder.iterdir()) == ["new", "old"]


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(MoecError, match="set XDG_CACHE_HOME"):
        cached("kind", "one", lambda path: path.write_text("x"))
