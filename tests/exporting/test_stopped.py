"""Outputs of every form: whole or absent, whatever ends their writing, and never in the place of other things."""

from __future__ import annotations

import dataclasses
import errno
import os
import pathlib
import shutil
import signal
import subprocess

import pytest

from moec.exporting.onnxruntime_moec import NAME as WITH_KERNELS

from ..command import moec
from .stopping import COMMAND, UNFINISHED, stopping
from .test_genai import speaking
from .test_onnxruntime_moec import needs_tools

ROOT = pathlib.Path(__file__).parents[2]
PATIENCE = 300
"""Seconds after which a command counts as hung. Form c compiles for half a minute, and longer on a busy machine."""
nightly = pytest.mark.nightly


@dataclasses.dataclass(frozen=True)
class Form:
    """A command that writes ``output`` from the file or folder ``source``. ``replaces``: whether it replaces what it
    wrote."""

    source: str
    output: str
    options: tuple[str, ...] = ()
    command: str = "export"
    replaces: bool = True

    def arguments(self, folder: pathlib.Path, output: pathlib.Path | None = None) -> list[str]:
        return [self.command, str(folder / self.source), "-o", str(output or folder / self.output), *self.options]


QUICK = {
    "onnxruntime": Form("model.onnx", "out.onnx"),
    "onnx": Form("model.onnx", "out", ("--for", "onnx")),
    "genai": Form("model.gguf", "out", ("--for", "genai")),
    "gguf": Form("model.gguf", "out.gguf", replaces=False),
    "huggingface": Form("folder", "out", ("--for", "huggingface"), replaces=False),
}
SLOW = {
    "onnxruntime, a folder": Form("model.onnx", "out", ("--for", "onnxruntime")),
    "onnx, a file": Form("model.onnx", "out.onnx", ("--for", "onnx")),
    WITH_KERNELS: Form("model.onnx", "out", ("--for", WITH_KERNELS)),
    "c": Form("model.onnx", "out", ("--form", "c"), "compile"),
}
FORMS = QUICK | SLOW
MARKS = {WITH_KERNELS: (needs_tools,)}


def forms(*quick: str) -> list[object]:
    """All forms; those that are not ``quick`` every night."""
    marks = {name: MARKS.get(name, ()) if name in quick else (nightly, *MARKS.get(name, ())) for name in FORMS}
    return [pytest.param(FORMS[name], id=name, marks=marks[name]) for name in FORMS]


@pytest.fixture(scope="module")
def sources(model_path, tmp_path_factory) -> pathlib.Path:
    """model.onnx, model.gguf, and folder of a Hugging Face model, all with experts."""
    from ..frontend.huggingface.models import mixtral, saved

    folder = tmp_path_factory.mktemp("sources")
    shutil.copy(model_path, folder / "model.onnx")
    speaking("mixtral", folder / "model.gguf")
    saved(mixtral(num_hidden_layers=1), folder / "folder", max_shard_size="20KB")
    return folder


@pytest.fixture
def folder(sources, tmp_path) -> pathlib.Path:
    shutil.copytree(sources, tmp_path / "work")
    return tmp_path / "work"


def contents(folder: pathlib.Path) -> dict[str, bytes | None]:
    """The bytes of every file below a folder, by path; None for folders."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")
    }


def middle(form: Form, folder: pathlib.Path) -> str:
    """Bytes after which about half of the weights are written."""
    return str(total_size(folder / form.source) // 2)


def total_size(path: pathlib.Path) -> int:
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def start(how: str, form: Form, folder: pathlib.Path) -> subprocess.Popen[str]:
    """Start a command that stops in the middle."""
    command = [*COMMAND, how, middle(form, folder), *form.arguments(folder)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=folder, text=True, env=environment, **pipes)


@pytest.mark.parametrize("form", forms(*QUICK))
def test_a_full_disk_leaves_nothing(form, folder):
    def refuse() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = contents(folder)
    with stopping(int(middle(form, folder)), refuse):
        result = moec(*form.arguments(folder))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert f"{form.output}: was not written: No space left on device" in result.stderr
    assert contents(folder) == before


@nightly
@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts file systems")
@pytest.mark.parametrize("form", forms())
def test_a_file_system_that_is_full_keeps_the_old_output(form, folder, tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        output = place / form.output
        assert moec(*form.arguments(folder, output)).returncode == 0
        other = output if form.replaces else place / f"second{output.suffix}"
        free, needed = shutil.disk_usage(place).free, total_size(output)
        (place / "filled").write_bytes(bytes(free - needed // 2))
        before = contents(place)
        result = moec(*form.arguments(folder, other))
        assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
        assert "No space left on device" in result.stderr
        assert contents(place) == before
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("form", forms("gguf"))
@pytest.mark.parametrize(
    "how", ["SIGTERM+", *(pytest.param(how, marks=nightly) for how in ("SIGINT", "SIGINT+", "SIGTERM", "SIGHUP"))]
)
def test_a_command_that_is_told_to_end_leaves_nothing(form, how, folder):
    before = contents(folder)
    with start(how, form, folder) as process:
        printed, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, printed, said) == (128 + signal.Signals[how.rstrip("+")], "", "")
    assert contents(folder) == before


@nightly
@pytest.mark.parametrize("form", forms())
def test_a_killed_command_leaves_what_the_next_one_removes(form, folder):
    before = contents(folder)
    with start("SIGKILL", form, folder) as process:
        process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL
    left = [path.name for path in folder.iterdir() if path.name not in before]
    assert len(left) == 1 and left[0].startswith(UNFINISHED)
    result = moec(*form.arguments(folder))
    assert result.returncode == 0, result.stderr
    assert {path.name for path in folder.iterdir()} == {*(name for name in before if "/" not in name), form.output}


@pytest.mark.parametrize("form", forms("gguf"))
def test_of_two_at_once_the_later_one_replaces_the_other_or_is_refused(form, folder):
    with start("WAIT", form, folder) as first:
        assert first.stdout is not None and first.stdout.readline() == "ready\n"
        result = moec(*form.arguments(folder))
        assert result.returncode == 0, result.stderr
        written = contents(folder / form.output) or (folder / form.output).read_bytes()
        _, said = first.communicate("\n", timeout=PATIENCE)
    assert (first.returncode, said.count("\n")) == ((0, 0) if form.replaces else (2, 1)), said
    assert form.replaces or "is never replaced" in said
    assert (contents(folder / form.output) or (folder / form.output).read_bytes()) == written
    assert not list(folder.glob(f"{UNFINISHED}*"))


def foreign_file(folder: pathlib.Path, form: Form) -> tuple[pathlib.Path, str]:
    (folder / "foreign").write_bytes(b"mine")
    return folder / "foreign", "foreign: "


def foreign_folder(folder: pathlib.Path, form: Form) -> tuple[pathlib.Path, str]:
    (folder / "foreign").mkdir()
    (folder / "foreign/file").write_bytes(b"mine")
    return folder / "foreign", "foreign: "


def link_to_foreign(folder: pathlib.Path, form: Form) -> tuple[pathlib.Path, str]:
    (folder / "foreign").write_bytes(b"mine")
    (folder / "link").symlink_to("foreign")
    return folder / "link", "foreign: "


def link_to_source(folder: pathlib.Path, form: Form) -> tuple[pathlib.Path, str]:
    (folder / "link").symlink_to(form.source)
    return folder / "link", "choose another path"


def source(folder: pathlib.Path, form: Form) -> tuple[pathlib.Path, str]:
    return folder / form.source, "choose another path"


def folder_of_source(folder: pathlib.Path, form: Form) -> tuple[pathlib.Path, str]:
    return folder, "choose another path"


def in_a_missing_folder(folder: pathlib.Path, form: Form) -> tuple[pathlib.Path, str]:
    return folder / "missing" / form.output, "missing does not exist; create it first"


def in_a_file(folder: pathlib.Path, form: Form) -> tuple[pathlib.Path, str]:
    return folder / "model.onnx" / form.output, "model.onnx does not exist"


def device(folder: pathlib.Path, form: Form) -> tuple[pathlib.Path, str]:
    return pathlib.Path("/dev/null"), "is a device"


OBSTACLES = [
    *(foreign_file, foreign_folder, link_to_foreign, link_to_source, source, folder_of_source),
    *(in_a_missing_folder, in_a_file, device),
]


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=(nightly, *MARKS.get(name, ()))) for name in SLOW)]
)
@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_must_not_be_replaced_is_refused(name, obstacle, folder):
    form = FORMS[name]
    output, message = obstacle(folder, form)
    before = contents(folder)
    result = moec(*form.arguments(folder, output), *(() if form.options else ("--for", name)))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr
    assert contents(folder) == before


def test_a_source_that_moec_wrote_is_not_replaced_either(model_path, tmp_path):
    for name in ("file.onnx", "folder"):
        assert moec("export", model_path, "-o", tmp_path / name, "--for", "onnxruntime").returncode == 0
    before = contents(tmp_path)
    for source, output, what in (
        ("file.onnx", "file.onnx", "the model"),
        ("folder/model.onnx", "folder", "the folder of the model"),
    ):
        result = moec("export", tmp_path / source, "-o", tmp_path / output, "--for", "onnxruntime")
        assert result.returncode == 2
        assert result.stderr == f"error: {tmp_path / output}: is {what} that is exported; choose another path\n"
    assert contents(tmp_path) == before


def test_an_output_in_the_folder_of_the_source_is_no_part_of_itself(folder):
    before = contents(folder / "folder")
    form = dataclasses.replace(FORMS["huggingface"], output="folder/out")
    assert moec(*form.arguments(folder)).returncode == 0
    assert contents(folder / "folder/out").keys() == before.keys()
    shutil.rmtree(folder / "folder/out")
    assert contents(folder / "folder") == before
