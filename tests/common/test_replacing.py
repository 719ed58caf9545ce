"""Replacement of moec's files: special files and those of others stay, and readers and writers may come at any time."""

from __future__ import annotations

import contextlib
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import threading

import pytest

from moec.common import replacing as module
from moec.common.errors import ArtifactError, MoecError
from moec.common.replacing import check_replaceable, replacing

OWN, FOREIGN = "own", "foreign"


def foreign_because(path: pathlib.Path) -> str | None:
    """Accept files, and folders of files, that hold the word."""
    files = path.iterdir() if path.is_dir() else [path]
    return None if all(file.is_file() and file.read_text().startswith(OWN) for file in files) else "is not own"


def write(path: pathlib.Path, text: str = OWN, *, folder: bool = True) -> None:
    with replacing(path, foreign_because) as aside:
        make(aside, text, folder=folder)


def make(path: pathlib.Path, text: str, *, folder: bool) -> None:
    if folder:
        path.mkdir()
    for number in range(3 if folder else 1):
        (path / str(number) if folder else path).write_text(text)


def read(path: pathlib.Path) -> set[str]:
    return {file.read_text() for file in (path.iterdir() if path.is_dir() else [path])}


@pytest.fixture(params=[True, False], ids=["renameat2", "without"])
def exchange(request, monkeypatch):
    """Whether the system can exchange; without it, the fallback is used."""
    if not request.param:
        monkeypatch.setattr(module, "_renamed", lambda *_: False)
    elif sys.platform != "linux":
        pytest.skip("renameat2 is Linux'")
    return request.param


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("old", [None, "empty folder", "empty file", "folder", "file"])
def test_replaces_nothing_and_its_own(tmp_path, exchange, folder, old):
    path = tmp_path / "a"
    if old is not None and "empty" in old:
        path.mkdir() if "folder" in old else path.touch()
    elif old is not None:
        make(path, f"{OWN} older", folder=old == "folder")
    write(path, f"{OWN} new", folder=folder)
    assert read(path) == {f"{OWN} new"}
    assert path.is_dir() == folder
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("folder", [True, False])
def test_what_others_wrote_stays(tmp_path, exchange, folder):
    make(tmp_path / "a", FOREIGN, folder=folder)
    with pytest.raises(MoecError, match="a: is not own; remove it or choose another path"):
        write(tmp_path / "a")
    assert read(tmp_path / "a") == {FOREIGN}


@pytest.mark.parametrize("folder", [True, False])
def test_what_comes_while_moec_writes_stays(tmp_path, exchange, folder):
    """The other file appears before the exchange, or between the last check and the exchange."""
    with pytest.raises(MoecError, match="is not own"), replacing(tmp_path / "a", foreign_because) as aside:
        make(aside, OWN, folder=folder)
        make(tmp_path / "a", FOREIGN, folder=True)
    assert read(tmp_path / "a") == {FOREIGN}
    make(tmp_path / "b", OWN, folder=True)
    looks = iter([None, None])  # before writing and before the exchange
    with (
        pytest.raises(MoecError, match="b: is not own"),
        replacing(tmp_path / "b", lambda _path: next(looks, "is not own")) as aside,
    ):
        make(aside, OWN, folder=folder)
    assert read(tmp_path / "b") == {OWN}
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("error", [None, FileNotFoundError("a file of the older one")])
def test_what_another_writer_puts_there_during_the_check_is_checked_again(tmp_path, error):
    """The first check reads files of both; the next finds those of the other writer."""
    checked: list[pathlib.Path] = []

    def check(path: pathlib.Path) -> str | None:
        checked.append(path)
        if len(checked) > 1:
            return foreign_because(path)
        write(path, f"{OWN} other")
        if error is not None:
            raise error
        return "was changed"

    make(tmp_path / "a", OWN, folder=True)
    assert check_replaceable(tmp_path / "a", check) == tmp_path / "a"
    assert checked == [tmp_path / "a"] * 2


def test_an_error_of_the_check_alone_is_an_error(tmp_path):
    def check(path: pathlib.Path) -> str | None:
        raise FileNotFoundError(2, "No such file", "a list")

    make(tmp_path / "a", OWN, folder=True)
    with pytest.raises(MoecError, match="cannot be written to: No such file"):
        check_replaceable(tmp_path / "a", check)


def special_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Make a pipe, a socket, and a device where that is permitted (with the numbers of /dev/null)."""
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as endpoint:
        endpoint.bind(str(folder / "socket"))
    with contextlib.suppress(PermissionError):
        os.mknod(folder / "device", 0o600 | 0o020000, os.makedev(1, 3))
    return sorted(folder.iterdir())


@pytest.mark.parametrize("link", [False, True])
def test_special_files_are_refused(tmp_path, monkeypatch, link):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    for path in special_files(pathlib.Path()):
        before = path.lstat()
        argument = pathlib.Path(f"to_{path}") if link else path
        if link:
            argument.symlink_to(path)
        with pytest.raises(MoecError, match=f"{argument}: is a {path.name}; moec writes files and folders only"):
            write(argument)
        assert path.lstat() == before


def test_links_are_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    make(tmp_path / "elsewhere" / "a", OWN, folder=True)
    (tmp_path / "link").symlink_to("elsewhere/a")
    (tmp_path / "dangling").symlink_to("elsewhere/b")
    (tmp_path / "circle").symlink_to("circle")
    for name in ("link", "dangling"):
        write(tmp_path / name, f"{OWN} new")
        assert (tmp_path / name).is_symlink()
    assert [read(tmp_path / "elsewhere" / name) for name in ("a", "b")] == [{f"{OWN} new"}] * 2
    with pytest.raises(MoecError, match="circle: cannot be written to: Too many levels of symbolic links"):
        write(tmp_path / "circle")


def test_nothing_is_written_without_rights(tmp_path, monkeypatch):
    make(tmp_path / "a", OWN, folder=True)
    with pytest.raises(ArtifactError, match="does not exist; create it first"):
        check_replaceable(tmp_path / "absent" / "a", foreign_because, ArtifactError)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(ArtifactError, match="is read-only; choose another path"):
        check_replaceable(tmp_path / "b", foreign_because, ArtifactError)
    monkeypatch.setattr(os, "access", lambda path, mode: path == tmp_path)
    with pytest.raises(MoecError, match="a: is write-protected; remove it or choose another path"):
        write(tmp_path / "a")


@pytest.mark.skipif(not hasattr(os, "seteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_of_somebody_else_is_one_line(tmp_path):
    """os.access asks for the real user, so the file system itself refuses here."""
    os.seteuid(65534)
    try:
        with pytest.raises(MoecError, match=r"a: (was not written|cannot be written to): Permission denied"):
            write(tmp_path / "a")
    finally:
        os.seteuid(0)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_the_old_one_whole(tmp_path):
    make(tmp_path / "a", OWN, folder=False)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limit[1]))
    try:
        with pytest.raises(MoecError, match="a: was not written: File too large"):
            write(tmp_path / "a", OWN * (1 << 16), folder=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert read(tmp_path / "a") == {OWN}
    assert os.listdir(tmp_path) == ["a"]


def test_a_failing_rename_puts_the_old_one_back(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_renamed", lambda *_: False)
    make(tmp_path / "a", OWN, folder=True)
    rename = pathlib.Path.rename

    def fail_once(self, target):
        if self.name == "content":
            monkeypatch.setattr(pathlib.Path, "rename", rename)
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", fail_once)
    with pytest.raises(MoecError, match="a: was not written: Input/output error"):
        write(tmp_path / "a", f"{OWN} new")
    assert read(tmp_path / "a") == {OWN}
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no exchange")
@pytest.mark.parametrize("folder", [True, False])
def test_readers_and_writers_at_once(tmp_path, folder):
    """Two writers never fail, and a reader finds a complete file of one of them at every moment."""
    path, done, failures = tmp_path / "a", threading.Event(), []
    write(path, f"{OWN} 0", folder=folder)

    def write_often(number: int) -> None:
        try:
            for _ in range(100):
                write(path, f"{OWN} {number}", folder=folder)
        except Exception as error:
            failures.append(error)

    def look() -> None:
        while not done.is_set():
            if not path.exists():
                failures.append("nothing there")

    writers = [threading.Thread(target=write_often, args=(number,)) for number in (1, 2)]
    reader = threading.Thread(target=look)
    for process in (reader, *writers):
        process.start()
    for process in writers:
        process.join()
    done.set()
    reader.join()
    assert not failures
    assert read(path) in ({f"{OWN} 1"}, {f"{OWN} 2"})
    assert os.listdir(tmp_path) == ["a"]


KILLED = """
import os, pathlib, signal, sys
from moec.common.replacing import replacing
with replacing(sys.argv[1], lambda path: None) as aside:
    aside.mkdir()
    (aside / "half").write_text("x")
    aside.with_name(f"{aside.name}.zip").write_text("x")
    if sys.argv[2] == "wait":
        print("ready", flush=True)
        sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_is_swept_by_the_next(tmp_path):
    make(tmp_path / "a", OWN, folder=True)
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "a", "now"])
    assert killed.returncode == -signal.SIGKILL
    assert read(tmp_path / "a") == {OWN}
    assert len(os.listdir(tmp_path)) == 2
    write(tmp_path / "b")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_what_a_living_writer_makes_is_not_swept(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path / "a", "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as living:
        assert living.stdout is not None and living.stdout.readline() == b"ready\n"
        write(tmp_path / "b")
        assert len(os.listdir(tmp_path)) == 2
        living.kill()
    write(tmp_path / "b")
    assert os.listdir(tmp_path) == ["b"]


def test_folders_that_only_resemble_a_writers_stay(tmp_path):
    for name in (".moec-unfinished-mine", f".moec-unfinished-{'0' * 16}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").write_text("data")
    write(tmp_path / "a")
    assert len(list(tmp_path.rglob("precious"))) == 2
