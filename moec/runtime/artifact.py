"""A compiled model on disk: a folder, or a zip of it, with a manifest, objects, weights, and texts for people.

    manifest.json   contents: inputs, outputs, MoE blocks, kernels and the reasons for their selection, checksums
    objects/        object files, linked in memory when loaded
    device/         code for a GPU, by its architecture
                    (with several architectures, objects/ and src/ have a folder for each)
    projects/       in place of these, for an FPGA: sources that another tool builds
    weights.bin     the constants in the kernels' layouts, page-aligned: mapped, or copied into huge pages
    ir/             the model after each stage, as text
    text/           of a language model: tokenizer and chat template
    src/            generated code: TIR, LLVM IR, assembly, CUDA C

Everything is checked before use: manifest, file sizes, checksums, CPU features. Only the check of ``weights.bin`` is
optional, because it reads all of that file (about 1 GB/s).
"""

from __future__ import annotations

import errno
import hashlib
import os
import pathlib
import platform
import shutil
import struct
import weakref
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np

from moec.common.dtypes import dtype_of
from moec.common.errors import ArtifactError, MoecError, one_line
from moec.common.scratch import ScratchFolder
from moec.runtime.machine import missing_features
from moec.runtime.manifest import (
    MANIFEST,
    WEIGHTS,
    FileEntry,
    Manifest,
    ProgramEntry,
    ProjectEntry,
    WeightEntry,
    all_programs,
)
from moec.runtime.matrix_tiles import refusal_of_matrix_tiles
from moec.runtime.pages import Pages, Placement, place_file
from moec.runtime.read_manifest import parse_manifest
from moec.runtime.streamed_weights import StreamedWeights
from moec.runtime.streaming import StreamPlan, check_replaceable, place_streamed

_MANIFEST_LIMIT = 256 << 20
_CHUNK = 1 << 20
_ELF, _ELF_MACHINES = b"\x7fELF", {62: ("x86_64", "amd64"), 183: ("aarch64", "arm64")}


class Artifact:
    """An artifact that was checked and may be read. :func:`open_artifact` makes it."""

    def __init__(self, folder: pathlib.Path, manifest: Manifest, where: str) -> None:
        self.folder, self.manifest, self.where = folder, manifest, where

    def __repr__(self) -> str:
        return f"<Artifact {self.where!r} for {self.manifest.target}, by moec {self.manifest.moec_version}>"

    def owns(self, folder: ScratchFolder) -> None:
        """Remove ``folder`` once neither this artifact nor a model or kernel read from it is in use."""
        weakref.finalize(self, folder.cleanup)

    def path(self, name: str) -> pathlib.Path:
        """Return the path of a file that the manifest lists."""
        if name not in self.manifest.files:
            raise ArtifactError(f"{self.where}: has no file {name!r}")
        return self.folder / name

    def text(self, name: str) -> str:
        return self.path(name).read_text(encoding="utf-8")

    def program(self, architecture: str | None = None) -> ProgramEntry:
        """Select the program for an architecture, by default the newest. Raises MoecError where there is none for
        it."""
        programs = self.manifest.programs
        if not programs:
            raise MoecError(
                f"{self.where}: holds projects for an FPGA and no program that runs here; simulate them: moec simulate"
            )
        if architecture is None:
            return programs[-1]
        selected = next((program for program in programs if program.architecture == architecture), None)
        if selected is None:
            others = ", ".join(program.architecture for program in programs if program.architecture)
            has = f"its programs are for {others}" if others else f"it is compiled for {self.manifest.target} alone"
            raise MoecError(f"{self.where}: has no program for architecture {architecture!r}; {has}")
        return selected

    def project_files(self, project: ProjectEntry) -> dict[str, bytes]:
        """Read a project's files, by path."""
        start = f"{project.folder}/"
        names = [name for name in self.manifest.files if name.startswith(start)]
        return {name.removeprefix(start): self.path(name).read_bytes() for name in names}

    def object_paths(self, program: ProgramEntry) -> list[pathlib.Path]:
        return [self.path(name) for name in program.objects]

    def weights(
        self,
        program: ProgramEntry,
        pages: Pages = "auto",
        resident: int | None = None,
        preferred: float = 0.0,
        rank: int | None = None,
        counts: Sequence[np.ndarray] | None = None,
    ) -> tuple[list[np.ndarray], Placement, StreamedWeights | None]:
        """Load a program's constants. Returns them, their place in memory, and those that are streamed, if there are
        any.

        Experts are streamed where ``resident``, or else the manifest, allows weights fewer bytes of memory than they
        have, or are not all this ``rank``'s; tables are read by rows in the first case. ``preferred``: see
        :class:`~moec.runtime.streamed_experts.StreamedExperts`. ``counts``: see
        :func:`~moec.runtime.streaming.place_streamed`. Raises MoecError for huge pages that are not available,
        for memory in which no token can run, and where the system has no memory.
        """
        path, entries, streamed = self.path(WEIGHTS), self.weight_entries(program), None
        resident = self.manifest.resident if resident is None else resident
        streams = any(each.streamed or each.tables for each, _, _ in all_programs(self.manifest))
        if not streams and (resident is not None or pages == "streamed"):
            raise MoecError(
                f"{self.where}: was compiled to have all weights in memory; compile it again with --resident"
            )
        if preferred:
            check_replaceable(program, pages, self.where)
        is_larger = resident is not None and resident < sum(entry.bytes for entry in entries)
        try:
            if (is_larger or rank is not None) and pages in ("auto", "streamed"):
                memory, streamed, placement = place_streamed(
                    path, program, entries, resident, self.where, preferred, self.manifest.plan, rank, counts
                )
            else:
                ranges = [(entry.offset, entry.offset + entry.bytes) for entry in entries]
                if rank is not None:
                    ranges = StreamPlan.of(program.streamed, entries, self.manifest.plan, rank).ranges()
                memory, placement = place_file(path, "auto" if pages == "streamed" else pages, ranges)
        except OSError as error:
            if error.errno == errno.ENOMEM:
                raise MoecError(
                    f"{self.where}: the system gives this process no memory for weights of "
                    f"{path.stat().st_size / (1 << 20):.1f} MiB; raise its limit (ulimit -d, -v), or spread "
                    "experts over processes (moec compile --ranks)"
                ) from error
            raise ArtifactError(f"{self.where}: {WEIGHTS} cannot be read: {error.strerror or error}") from error
        weights = [
            memory[weight.offset : weight.offset + weight.bytes].view(dtype_of(weight.dtype)).reshape(weight.shape)
            for weight in entries
        ]
        return weights, placement, streamed

    def more_weights(self, program: ProgramEntry, loaded: Mapping[int, np.ndarray]) -> list[np.ndarray]:
        """The constants of another program: those ``loaded``, by position in the manifest, and others from their
        file."""
        entries = {at: self.manifest.weights[at] for at in program.weights if at not in loaded}
        ranges = [(entry.offset, entry.offset + entry.bytes) for entry in entries.values()]
        memory, _ = place_file(self.path(WEIGHTS), "mapped", ranges)
        others = {
            at: memory[entry.offset : entry.offset + entry.bytes].view(dtype_of(entry.dtype)).reshape(entry.shape)
            for at, entry in entries.items()
        }
        return [loaded[at] if at in loaded else others[at] for at in program.weights]

    def weight_entries(self, program: ProgramEntry) -> list[WeightEntry]:
        return [self.manifest.weights[index] for index in program.weights]


def open_artifact(path: str | os.PathLike[str], *, check_weights: bool = True) -> Artifact:
    """Open a folder or a zip and check all of it. Raises ArtifactError with one line that says what is wrong.

    A zip is unpacked into a temporary folder that lives as long as the artifact. If another artifact takes its place in
    the meantime, that one is opened.
    """
    path = pathlib.Path(path)
    while True:
        before = _identity(path)
        try:
            artifact = _open(path, check_weights)
        except ArtifactError:
            if _identity(path) == before:
                raise
        else:
            if _identity(path) == before:
                return artifact


def _identity(path: pathlib.Path) -> tuple[int, int, int] | None:
    """Identify an artifact, to notice that another one took its place."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _open(path: pathlib.Path, check_weights: bool) -> Artifact:
    where = str(path)
    if not path.exists():
        raise ArtifactError(f"{where}: no such artifact; make one with: moec compile MODEL -o {where}")
    if not path.is_dir() and not path.is_file():
        raise ArtifactError(f"{where}: is neither a folder nor a plain file; expected an artifact, or a zip of one")
    try:
        artifact = _open_folder(path) if path.is_dir() else _unpack(path)
        _check_files(artifact, check_weights)
    except OSError as error:
        raise ArtifactError(f"{where}: cannot be read: {error.strerror or error}") from error
    return artifact


def check_machine(artifact: Artifact) -> None:
    """Raise ArtifactError when this machine cannot execute the artifact's objects. Otherwise this process may do so."""
    manifest, where = artifact.manifest, artifact.where
    programs = [program for program, _, _ in all_programs(manifest)]
    requirements = list(dict.fromkeys(feature for program in programs for feature in program.requirements))
    for path in (path for program in programs for path in artifact.object_paths(program)):
        with path.open("rb") as file:
            header = file.read(20)
        names = _ELF_MACHINES.get(int.from_bytes(header[18:20], "little")) if header[:4] == _ELF else None
        if names and platform.machine().lower() not in names:
            raise ArtifactError(
                f"{where}: is compiled for {names[0]}, but this machine is {platform.machine()}; compile the model here"
            )
    missing = missing_features(requirements)
    if missing:
        raise ArtifactError(
            f"{where}: was compiled for {manifest.target}, which needs {', '.join(missing)}, and this machine's CPU "
            "lacks that; compile the model here or with a smaller --target"
        )
    refusal = refusal_of_matrix_tiles() if "amx-tile" in requirements else None
    if refusal:
        raise ArtifactError(
            f"{where}: was compiled for {manifest.target}, which uses matrix tiles (amx-tile), but {refusal}; "
            f"compile the model with a smaller --target, e.g. {manifest.target.partition(':')[0]}:avx512bf16"
        )


def checksum(path: pathlib.Path) -> FileEntry:
    """Compute size and SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileEntry(size, digest.hexdigest())


def _open_folder(path: pathlib.Path) -> Artifact:
    return Artifact(path.absolute(), _read_manifest(path, str(path)), str(path))


def _read_manifest(folder: pathlib.Path, where: str) -> Manifest:
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{where}: is not a moec artifact (it has no {MANIFEST})")
    if path.stat().st_size > _MANIFEST_LIMIT:
        raise ArtifactError(f"{where}: {MANIFEST} is larger than {_MANIFEST_LIMIT} bytes")
    return parse_manifest(path.read_bytes(), where)


def _check_files(artifact: Artifact, check_weights: bool) -> None:
    root = os.path.realpath(artifact.folder)
    for name, expected in artifact.manifest.files.items():
        path = artifact.folder / name
        if not pathlib.Path(os.path.realpath(path)).is_relative_to(root):  # Path.resolve fails for links in a circle
            raise ArtifactError(f"{artifact.where}: {name} is a link that leaves the folder")
        if not path.is_file():
            raise ArtifactError(f"{artifact.where}: {name} is missing; compile the model again")
        size = path.stat().st_size
        if size != expected.bytes:
            raise ArtifactError(
                f"{artifact.where}: {name} has {size} bytes; expected {expected.bytes}; it was truncated or altered: "
                "compile the model again"
            )
        if (check_weights or name != WEIGHTS) and checksum(path) != expected:
            raise ArtifactError(f"{artifact.where}: {name} was altered (its checksum differs); compile the model again")


def _unpack(path: pathlib.Path) -> Artifact:
    """Unpack the files that the manifest lists. Only stored (uncompressed) entries are accepted, so that the unpacked
    size cannot exceed the archive's own."""
    where = str(path)
    temporary = ScratchFolder()
    folder = pathlib.Path(temporary.name)
    try:
        with zipfile.ZipFile(path) as archive:
            _unpack_entry(archive, MANIFEST, folder, where)
            manifest = _read_manifest(folder, where)
            for name in manifest.files:
                _unpack_entry(archive, name, folder, where)
    except _DAMAGED as error:
        temporary.cleanup()
        reason = one_line(error) or "it ends early"
        raise ArtifactError(f"{where}: is neither an artifact's folder nor an intact zip of one ({reason})") from error
    except OSError as error:
        temporary.cleanup()
        reason = f"cannot be unpacked into {folder.parent}: {error.strerror or error}"
        raise ArtifactError(f"{where}: {reason}; make room there, set TMPDIR, or copy the zip again") from error
    except BaseException:
        temporary.cleanup()
        raise
    artifact = Artifact(folder, manifest, where)
    artifact.owns(temporary)
    return artifact


_DAMAGED = (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, struct.error, UnicodeDecodeError)
"""Exceptions of the module ``zipfile`` for archives that are damaged, or that it cannot read."""


def _unpack_entry(archive: zipfile.ZipFile, name: str, folder: pathlib.Path, where: str) -> None:
    try:
        entry = archive.getinfo(name)
    except KeyError:
        raise ArtifactError(f"{where}: {name} is missing; compile the model again") from None
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ArtifactError(f"{where}: {name} is compressed; expected a zip without compression, as moec writes it")
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entry) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, _CHUNK)
