"""The cache of compiled files."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import stat

import pytest

from moec.common.errors import MoecError
from moec.targets import build_cache
from moec.targets.build_cache import KERNELS, cached, clear, keep, recall, usage

KEY = "0123456789abcdef" * 4
OTHER = "f" * 64


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(build_cache.LIMITS, "kind", 1 << 20)
    return tmp_path / "moec" / "kind"


def never(_path: pathlib.Path) -> None:
    raise AssertionError("it is there already")


def test_a_file_is_made_once(folder):
    path = cached("kind", KEY, lambda path: path.write_text("made"))
    assert path == folder / KEY
    assert cached("kind", KEY, never).read_text() == "made"


def test_a_failure_leaves_nothing_behind(folder):
    def fail(path: pathlib.Path) -> None:
        path.write_text("half")
        raise MoecError("does not compile")

    with pytest.raises(MoecError, match="does not compile"):
        cached("kind", KEY, fail)
    assert list(folder.iterdir()) == []


def test_what_was_not_asked_for_the_longest_is_forgotten(folder, monkeypatch):
    keep("kind", {KEY: b"x"})
    size = (folder / KEY).stat().st_size
    monkeypatch.setitem(build_cache.LIMITS, "kind", 2 * size)
    for age, digit in enumerate("abc"):
        keep("kind", {digit * 64: b"x"})
        os.utime(folder / (digit * 64), (1000 - age, 1000 - age))
    os.utime(folder / KEY, (1, 1))
    assert recall("kind", KEY) == b"x"  # marks it as recently used
    keep("kind", {OTHER: b"x"})
    assert sorted(file.name for file in folder.iterdir()) == sorted([KEY, OTHER])


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(MoecError, match="set XDG_CACHE_HOME"):
        cached("kind", KEY, lambda path: path.write_text("x"))


@pytest.mark.parametrize("content", [b"", b"\n", b"text", bytes(range(256)) * 100])
def test_what_was_kept_is_recalled_byte_for_byte(folder, content):
    keep("kind", {KEY: content})
    assert recall("kind", KEY) == content
    assert recall("kind", OTHER) is None
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / KEY).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"kept", b"sept")),
        lambda path: path.write_bytes(b""),
        lambda path: path.rename(path.with_name(OTHER)),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.rename(path.with_name("away")), path.symlink_to(path.with_name("away"))),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
    ids=["truncated", "changed", "empty", "another's name", "a folder", "a link", "a pipe"],
)
def test_a_damaged_entry_is_none(folder, damage):
    keep("kind", {KEY: b"kept"})
    damage(folder / KEY)
    assert recall("kind", KEY) is None
    assert recall("kind", OTHER) is None


def test_files_are_counted_at_first_and_when_many_are_new(monkeypatch):
    counted: list[int] = []
    monkeypatch.setattr(build_cache, "_forget_oldest", lambda _folder, limit: counted.append(limit))
    keep("kind", {KEY: b"kept"})
    assert len(counted) == 1
    keep("kind", {KEY: b"kept"})
    keep("kind", {KEY: b"kept" * 3000})
    assert len(counted) == 1
    keep("kind", {OTHER: b"kept" * 2000})
    assert len(counted) == 2
    keep("kind", {OTHER: b"kept"})
    assert len(counted) == 2


@pytest.mark.parametrize("place", ["moec", "moec/kind"])
def test_a_folder_that_others_may_write_to_is_not_used(tmp_path, place):
    keep("kind", {KEY: b"kept"})
    (tmp_path / place).chmod(0o770)
    assert recall("kind", KEY) is None
    keep("kind", {OTHER: b"kept"})
    assert not (tmp_path / "moec" / "kind" / OTHER).exists()
    (refused,) = (one.refused for one in usage() if one.kind == "kind")
    assert refused is not None
    assert refused.endswith("others may write to it: chmod 700")


def test_a_folder_that_is_a_link_is_not_used(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "moec").symlink_to(tmp_path / "elsewhere")
    keep("kind", {KEY: b"kept"})
    assert recall("kind", KEY) is None
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_where_nothing_can_be_kept_nothing_happens(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep("kind", {KEY: b"kept"})
    assert recall("kind", KEY) is None


def test_a_full_disk_leaves_nothing_behind(folder, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build_cache.os, "replace", full)
    keep("kind", {KEY: b"kept"})
    assert list(folder.iterdir()) == []


def test_clearing_removes_what_moec_kept_and_nothing_else(folder, tmp_path):
    keep("kind", {KEY: b"kept"})
    (tmp_path / "precious").write_text("text")
    (folder / "notes.txt").write_text("text")
    (folder / OTHER).symlink_to(tmp_path / "precious")
    (folder / ("e" * 64)).mkdir()
    (one,) = (one for one in usage() if one.kind == "kind")
    assert (one.folder, one.entries, one.limit) == (str(folder), 1, 1 << 20)
    assert clear() == 1
    assert sorted(file.name for file in folder.iterdir()) == sorted(["e" * 64, OTHER, "notes.txt"])
    assert (tmp_path / "precious").read_text() == "text"


def write_often(number: int) -> None:
    for _ in range(50):
        keep(KERNELS, {KEY: bytes([number]) * 10000})
        assert recall(KERNELS, KEY) in {bytes([index]) * 10000 for index in range(4)}


def test_processes_write_and_read_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_often, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert [file.name for file in (tmp_path / "moec" / KERNELS).iterdir()] == [KEY]
