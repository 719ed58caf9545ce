"""Temporary folders of killed processes are removed by the next process; those of others stay."""

from __future__ import annotations

import errno
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

import pytest

from moec.common import scratch
from moec.common.errors import MoecError
from moec.common.scratch import ScratchFolder, sweep

HOLDING = "from moec.common.scratch import ScratchFolder; f = ScratchFolder(); print(f.name, flush=True); input()"


@pytest.fixture
def parent(tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(scratch, "_swept", set())
    return tmp_path


def test_a_folder_lives_as_long_as_it_is_used(parent):
    with ScratchFolder() as name:
        pathlib.Path(name, "inside").write_text("")
        sweep(parent)
        assert os.listdir(name) == ["inside"]
    assert os.listdir(parent) == []
    forgotten = ScratchFolder()
    del forgotten
    assert os.listdir(parent) == []


def test_folders_of_killed_processes_go_and_those_of_living_ones_stay(parent):
    command = [sys.executable, "-c", HOLDING]
    environment = {**os.environ, "TMPDIR": str(parent)}
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as killed,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as alive,
    ):
        assert killed.stdout is not None and alive.stdout is not None
        left, kept = killed.stdout.readline().strip(), alive.stdout.readline().strip()
        pathlib.Path(left, "inside").write_text("")
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert {left, kept} == {str(path) for path in parent.iterdir()}
        with ScratchFolder():
            assert not os.path.exists(left) and os.path.exists(kept)
        alive.communicate("\n")
    assert alive.returncode == 0 and os.listdir(parent) == []


def test_what_only_looks_like_one_stays(parent):
    (parent / "moec-scratch-abcdefgh").write_text("a file")
    (parent / "moec-scratch-notes").mkdir()
    (parent / "elsewhere").mkdir()
    (parent / "moec-scratch-abcd1234").symlink_to(parent / "elsewhere")
    with ScratchFolder():
        pass
    assert len(os.listdir(parent)) == 4


def test_a_system_without_room_for_temporary_files(monkeypatch):
    def refuse():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", refuse)
    with pytest.raises(MoecError, match=r"No usable .*; make room for temporary files, or set TMPDIR"):
        ScratchFolder()
