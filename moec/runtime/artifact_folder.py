"""Folder or zip of an artifact that is being written. It replaces artifacts and nothing else, see
:mod:`moec.common.replacing`."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import zipfile
from collections.abc import Iterator

from moec.common import seals
from moec.common.errors import ArtifactError
from moec.common.replacing import replacing
from moec.runtime.artifact import Artifact, checksum
from moec.runtime.foreign import foreign_artifact
from moec.runtime.manifest import MANIFEST, print_manifest


def copy_artifact(artifact: Artifact, path: str | os.PathLike[str]) -> None:
    """Write a copy of an open artifact, as a folder, or as one zip when the path ends in ``.zip``. Raises ArtifactError
    where something else is there, the file system refuses, or files have changed since they were opened."""
    with new_artifact(path) as folder:
        for name, expected in artifact.manifest.files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.folder / name, target)
            if checksum(target) != expected:
                raise ArtifactError(
                    f"{artifact.where}: {name} has changed since the artifact was loaded; load it again"
                )
        (folder / MANIFEST).write_text(print_manifest(artifact.manifest), encoding="utf-8")


@contextlib.contextmanager
def new_artifact(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Context with an empty folder that becomes the artifact at ``path`` when the block ends without an error."""
    with replacing(path, foreign_artifact, ArtifactError) as aside:
        aside.mkdir()
        yield aside
        if pathlib.Path(path).suffix == ".zip":
            _pack(aside)


def _pack(folder: pathlib.Path) -> None:
    """Replace a folder by one sealed zip. Its bytes depend on the files alone: all have the same time and mode."""
    path = folder.with_name(f"{folder.name}.zip")
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED) as archive:
        for file in files:
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix())
            entry.file_size, entry.external_attr = file.stat().st_size, 0o644 << 16
            with file.open("rb") as source, archive.open(entry, "w") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    seals.seal_zip(path)
    shutil.rmtree(folder)
    path.rename(folder)
