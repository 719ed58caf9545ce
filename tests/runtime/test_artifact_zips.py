"""Artifacts in one file: what is no intact zip, or finds no room, is a single line."""

from __future__ import annotations

import pathlib
import resource
import zipfile

import pytest

from moec.artifacts.loading import load
from moec.common.errors import ArtifactError
from moec.runtime.manifest import WEIGHTS


def zip_of(folder: pathlib.Path, path: pathlib.Path, *, leave_out: str = "", compression=zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in folder.rglob("*"):
            name = file.relative_to(folder).as_posix()
            if file.is_file() and name != leave_out:
                archive.write(file, name)


def test_zip_entries_outside_the_manifest_are_ignored(artifact_path, tmp_path, inputs):
    path = tmp_path / "inner" / "a.zip"
    path.parent.mkdir()
    zip_of(artifact_path, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../escaped", "x")
    assert load(path).run(inputs)["y"].shape == (3, 4)
    assert not (tmp_path / "escaped").exists()


def test_zip_that_is_compressed_or_incomplete_or_truncated(artifact_path, tmp_path):
    path = tmp_path / "a.zip"
    zip_of(artifact_path, path, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ArtifactError, match="is compressed; expected a zip without compression"):
        load(path)
    zip_of(artifact_path, path, leave_out=WEIGHTS)
    with pytest.raises(ArtifactError, match=r"weights\.bin is missing"):
        load(path)
    zip_of(artifact_path, path)
    data = path.read_bytes()
    first_length = data.index(b"PK\1\2") + 20
    for damaged in (data[:-100], data[:first_length] + b"\xfe\xff\xff\xff" * 2 + data[first_length + 8 :]):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"nor an intact zip of one \(\w"):
            load(path)


def test_zip_that_is_unpacked_where_no_room_is(artifact_path, tmp_path):
    zip_of(artifact_path, tmp_path / "a.zip")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))
    try:
        with pytest.raises(ArtifactError, match=r"cannot be unpacked into .*: File too large; make room there"):
            load(tmp_path / "a.zip")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load(tmp_path / "a.zip")
