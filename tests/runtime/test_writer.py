"""Artifacts are written completely or not at all, and only in the place of files that moec wrote."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pathlib
import zipfile

import numpy as np
import pytest

from moec.artifacts.loading import load
from moec.artifacts.writer import write_artifact
from moec.common.errors import ArtifactError
from moec.runtime.artifact import open_artifact
from moec.runtime.manifest import MANIFEST, WEIGHTS
from moec.targets.base import Program, Weight

from .forged_manifests import signed


def names_in(folder: pathlib.Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_weights_are_page_aligned_and_mapped(program, context, tmp_path):
    weights = [
        Weight("bytes", (3,), "uint8", lambda: np.arange(3, dtype=np.uint8)),
        Weight("none", (0, 4), "float32", lambda: np.empty((0, 4), np.float32)),
        Weight("half", (2, 2), "float16", lambda: np.eye(2, dtype=np.float16).T),
    ]
    path = tmp_path / "a.moec"
    write_artifact(path, Program("cpu", [], [], {"program.o": b""}, weights, []), context)
    artifact = open_artifact(path)
    assert [weight.offset % 4096 for weight in artifact.manifest.weights] == [0, 0, 0]
    loaded, _, _ = artifact.weights(artifact.program())
    np.testing.assert_array_equal(loaded[0], [0, 1, 2])
    assert loaded[1].shape == (0, 4)
    np.testing.assert_array_equal(loaded[2], np.eye(2))


def test_weights_may_come_in_pieces(context, tmp_path):
    experts = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
    weights = [
        Weight("experts", (3, 2, 4), "float32", lambda: iter(experts)),
        Weight("next", (3,), "uint8", lambda: iter([np.zeros(0, np.uint8), np.arange(3, dtype=np.uint8)])),
    ]
    path = tmp_path / "a.moec"
    write_artifact(path, Program("cpu", [], [], {"program.o": b""}, weights, []), context)
    artifact = open_artifact(path)
    loaded, _, _ = artifact.weights(artifact.program())
    np.testing.assert_array_equal(loaded[0], experts)
    np.testing.assert_array_equal(loaded[1], np.arange(3))
    np.testing.assert_array_equal(weights[0].array(), experts)


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (lambda: np.zeros(3, np.float64), r"a piece is float64\[3\]"),
        (lambda: np.zeros(4, np.float32), r"a piece is float32\[4\]"),
        (lambda: iter([np.zeros(2, np.float32), np.zeros(2, np.float32)]), r"a piece is float32\[2\]"),
        (lambda: iter([np.zeros(2, np.float32)]), "has 2 elements"),
    ],
)
def test_a_weight_that_is_not_as_announced_is_a_defect(load, reason, context, tmp_path):
    wrong = Weight("w", (3,), "float32", load)
    with pytest.raises(ValueError, match=rf"'w' was announced as float32\[3\], but {reason}"):
        write_artifact(tmp_path / "a.moec", Program("cpu", [], [], {"program.o": b""}, [wrong], []), context)
    assert names_in(tmp_path) == []


def test_full_disk_leaves_nothing_and_keeps_the_old(program, context, tmp_path, monkeypatch, inputs):
    path = tmp_path / "a.moec"
    write_artifact(path, program, context)
    _fill_disk(monkeypatch)
    for target in (path, tmp_path / "b.moec", tmp_path / "c.zip"):
        with pytest.raises(ArtifactError, match=f"{target.name}: was not written: No space left on device"):
            write_artifact(target, program, context)
    monkeypatch.undo()
    assert names_in(tmp_path) == ["a.moec"]
    assert load(path).run(inputs)["y"].shape == (3, 4)


def test_other_things_are_not_replaced(program, context, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").write_text("data")
    (tmp_path / "file").write_text("data")
    with pytest.raises(ArtifactError, match="holds something else than an artifact"):
        write_artifact(tmp_path / "folder", program, context)
    with pytest.raises(ArtifactError, match="is a file that moec did not write, not an artifact"):
        write_artifact(tmp_path / "file", program, context)
    with pytest.raises(ArtifactError, match="does not exist; create it first"):
        write_artifact(tmp_path / "absent" / "a.moec", program, context)
    assert names_in(tmp_path) == ["file", "folder"]
    assert (tmp_path / "folder" / "precious").read_text() == "data"


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda path: (path / "notes.txt").write_text("data"),
            "is an artifact with notes.txt in it, which moec did not",
        ),
        (lambda path: (path / "src" / "notes.txt").write_text("data"), "is an artifact with src/notes.txt in it"),
        (lambda path: (path / "empty").mkdir(), "is an artifact with empty in it"),
        (lambda path: (path / "src" / "link").symlink_to("/"), "is an artifact with src/link in it"),
        (
            lambda path: (path / "src" / "add_multiply.tir").write_text("my own"),
            "whose src/add_multiply.tir was changed",
        ),
        (lambda path: (path / WEIGHTS).write_bytes(b"other"), "whose weights.bin was changed"),
        (lambda path: (path / MANIFEST).write_text('{"name": "an app"}'), "holds something else than an artifact"),
        (
            lambda path: (path / MANIFEST).write_text('{"files": {}, "digest": "0"}'),
            "holds something else than an artif",
        ),
        (lambda path: (path / MANIFEST).unlink(), "holds something else than an artifact"),
    ],
)
def test_what_users_put_into_an_artifact_survives(program, context, artifact_path, change, message):
    change(artifact_path)
    before = contents(artifact_path)
    with pytest.raises(ArtifactError, match=f"{message}.*; remove it or choose another path"):
        write_artifact(artifact_path, program, context)
    assert contents(artifact_path) == before
    assert names_in(artifact_path.parent) == [artifact_path.name]


def test_an_artifact_of_another_format_version_is_replaced(program, context, artifact_path, inputs):
    content = json.loads((artifact_path / MANIFEST).read_text())
    (artifact_path / MANIFEST).write_text(signed({**content, "format_version": 1, "inputs": "older"}))
    (artifact_path / "src" / "add_multiply.tir").unlink()  # a missing file cannot be lost
    write_artifact(artifact_path, program, context)
    assert load(artifact_path).run(inputs)["y"].shape == (3, 4)


def test_a_zip_is_replaced_only_as_moec_wrote_it(program, context, tmp_path):
    path = tmp_path / "a.zip"
    write_artifact(path, program, context)
    write_artifact(path, program, context)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("notes.txt", "data")
    with pytest.raises(ArtifactError, match=r"a\.zip: is a file that .*, not an artifact; remove it"):
        write_artifact(path, program, context)
    assert zipfile.ZipFile(path).read("notes.txt") == b"data"


def test_a_copy_is_of_what_was_loaded(program, context, artifact_path, tmp_path):
    loaded = load(artifact_path)
    other = dataclasses.replace(program, weights=[Weight("w", (4,), "float32", lambda: np.ones(4, np.float32))])
    write_artifact(artifact_path, other, context)
    with pytest.raises(ArtifactError, match=r"weights\.bin has changed since the artifact was loaded; load it again"):
        loaded.save(tmp_path / "b.moec")
    assert names_in(tmp_path) == [artifact_path.name]


def _fill_disk(monkeypatch) -> None:
    """Let every write to a new binary file fail as on a full disk, at the second write."""
    original = pathlib.Path.open

    class Full:
        def __init__(self, file):
            self._file, self._writes = file, 0

        def write(self, content):
            self._writes += 1
            if self._writes > 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self._file.write(content)

        def __enter__(self):
            return self

        def __exit__(self, *details):
            self._file.close()

        def __getattr__(self, name):
            return getattr(self._file, name)

    def opened(self, mode="r", *arguments, **options):
        file = original(self, mode, *arguments, **options)
        return Full(file) if mode == "wb" else file

    monkeypatch.setattr(pathlib.Path, "open", opened)
