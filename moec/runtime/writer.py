"""Writing artifacts: aside first, then renamed, so that nobody ever sees half of one."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import re
import secrets
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from moec.errors import ArtifactError
from moec.runtime.artifact import Artifact, checksum
from moec.runtime.manifest import (
    MANIFEST,
    WEIGHT_ALIGNMENT,
    WEIGHTS,
    FileEntry,
    Manifest,
    WeightEntry,
    print_manifest,
)

if TYPE_CHECKING:
    from moec.targets.base import KernelRecord, Program, Weight

_SUFFIXES = {
    "tir": ".tir",
    "llvm": ".ll",
    "asm": ".s",
    "cuda": ".cu",
    "ptx": ".ptx",
    "sass": ".sass",
    "resources": ".txt",
}


@dataclasses.dataclass(frozen=True)
class Stage:
    """The model's text after one step of the compilation; None where the step changed nothing."""

    name: str
    text: str | None
    seconds: float


@dataclasses.dataclass(frozen=True)
class Context:
    """What the compiler knows about a program beyond the program itself."""

    moec_version: str
    threads: int | None
    moe_blocks: list[dict[str, Any]]
    input_limits: dict[str, int]
    input_sizes: dict[str, str]
    stages: Sequence[Stage]
    remarks: list[dict[str, Any]]
    losses: list[dict[str, Any]]
    provenance: dict[str, Any]


def write_artifact(path: str | os.PathLike[str], program: Program, context: Context) -> None:
    """Write a program as a folder, or as one zip when the path ends in ``.zip``; an artifact already there is replaced.

    Raises ArtifactError when something else is there or the file system refuses (a full disk, say); then nothing
    new is left behind and an older artifact is unharmed.
    """
    with _replacing(pathlib.Path(path)) as folder:
        _write_files(folder, program, context)


def copy_artifact(artifact: Artifact, path: str | os.PathLike[str]) -> None:
    """Write a copy of an open artifact, as :func:`write_artifact` does."""
    with _replacing(pathlib.Path(path)) as folder:
        for name in (MANIFEST, *artifact.manifest.files):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.folder / name, target)


def check_destination(path: str | os.PathLike[str]) -> None:
    """Raise ArtifactError if an artifact cannot go there: an artifact may replace an artifact or an empty folder, never
    something else that happens to have the name."""
    path = pathlib.Path(path).absolute()
    try:
        _refuse_foreign(path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written to: {error.strerror or error}") from error


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty folder beside ``path`` that takes its place when the block ends well, and vanishes when it does not."""
    path = path.absolute()
    aside = path.parent / f".{path.name}.{secrets.token_hex(6)}"
    try:
        _refuse_foreign(path)
        aside.mkdir()
        yield aside
        _publish(aside, path)
    except OSError as error:
        raise ArtifactError(f"{path}: the artifact was not written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _refuse_foreign(path: pathlib.Path) -> None:
    if not path.parent.is_dir():
        raise ArtifactError(f"{path}: the folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise ArtifactError(f"{path}: the folder {path.parent} is read-only; choose another path")
    if path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise ArtifactError(f"{path}: is a folder that holds something else than an artifact; choose another path")
    if path.is_file() and not zipfile.is_zipfile(path):
        raise ArtifactError(f"{path}: is a file, not an artifact; choose another path")


def _publish(folder: pathlib.Path, path: pathlib.Path) -> None:
    new = _pack(folder) if path.suffix == ".zip" else folder
    if not path.exists():
        new.rename(path)
        return
    old = path.parent / f".{path.name}.{secrets.token_hex(6)}"
    path.rename(old)  # a folder that is not empty cannot be replaced in one step
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old) if old.is_dir() else old.unlink()


def _pack(folder: pathlib.Path) -> pathlib.Path:
    archive_path = folder / "artifact.zip"
    with zipfile.ZipFile(archive_path, "x", zipfile.ZIP_STORED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file != archive_path:
                archive.write(file, file.relative_to(folder).as_posix())
    return archive_path


def _write_files(folder: pathlib.Path, program: Program, context: Context) -> None:
    files: dict[str, FileEntry] = {}

    def write(name: str, content: bytes) -> str:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        files[name] = checksum(path)
        return name

    weights, files[WEIGHTS] = _write_weights(folder / WEIGHTS, program.weights)
    objects = [write(f"objects/{_file_name(name)}", content) for name, content in program.objects.items()]
    binaries = {name: write(f"device/{_file_name(name)}.cubin", content) for name, content in program.binaries.items()}
    for name, text in program.sources.items():
        write(f"src/{_file_name(name)}", text.encode())
    kernels = [
        {**_kernel_fields(kernel), "sources": {form: write(name, text) for form, name, text in _source_files(kernel)}}
        for kernel in program.kernels
    ]
    stages = []
    for index, stage in enumerate(context.stages):
        if stage.text is None:
            file = stages[-1]["file"]
        else:
            file = write(f"ir/{index:02d}-{_file_name(stage.name)}.onnxtxt", stage.text.encode())
        changed = stage.text is not None
        stages.append({"name": stage.name, "seconds": round(stage.seconds, 4), "changed": changed, "file": file})
    manifest = Manifest(
        moec_version=context.moec_version,
        target=program.target,
        inputs=list(program.inputs),
        outputs=list(program.outputs),
        objects=objects,
        weights=weights,
        files=files,
        requirements=list(program.requirements),
        binaries=binaries,
        threads=context.threads,
        moe_blocks=context.moe_blocks,
        input_limits=context.input_limits,
        input_sizes=context.input_sizes,
        kernels=kernels,
        stages=stages,
        remarks=context.remarks,
        losses=context.losses,
        provenance=context.provenance,
    )
    (folder / MANIFEST).write_text(print_manifest(manifest), encoding="utf-8")


def _kernel_fields(kernel: KernelRecord) -> dict[str, Any]:
    return {
        "name": kernel.name,
        "op": kernel.op,
        "nodes": list(kernel.nodes),
        "computes": kernel.computes,
        "attributes": kernel.attributes,
        "candidates": [dataclasses.asdict(candidate) for candidate in kernel.candidates],
    }


def _source_files(kernel: KernelRecord) -> Iterator[tuple[str, str, bytes]]:
    for form, text in kernel.sources.items():
        yield form, f"src/{_file_name(kernel.name)}{_SUFFIXES.get(form, '.' + _file_name(form))}", text.encode()


def _write_weights(path: pathlib.Path, weights: Sequence[Weight]) -> tuple[list[WeightEntry], FileEntry]:
    entries, digest = [], hashlib.sha256()
    with path.open("wb") as file:
        for weight in weights:
            _append(file, digest, bytes(-file.tell() % WEIGHT_ALIGNMENT))
            offset = file.tell()
            for piece in weight.pieces():
                _append(file, digest, piece.view(np.uint8).data)
            entries.append(WeightEntry(weight.name, weight.dtype, weight.shape, offset, file.tell() - offset))
        file.flush()
        os.fsync(file.fileno())  # some file systems report a full disk only now
        return entries, FileEntry(file.tell(), digest.hexdigest())


def _append(file: BinaryIO, digest: Any, content: bytes | memoryview) -> None:
    file.write(content)
    digest.update(content)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.+-]", "_", name, flags=re.ASCII).lstrip(".") or "unnamed"
