"""Writer of artifacts. It replaces artifacts and nothing else, see :mod:`moec.common.replacing`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from moec import targets
from moec.artifacts.mtp import MtpProgram
from moec.common.dtypes import dtype_of
from moec.common.errors import ArtifactError
from moec.common.progress import Progress, reported, silent
from moec.common.replacing import check_replaceable
from moec.common.specs import State
from moec.common.tokenizers import TextFiles
from moec.common.work import work_as_data
from moec.placing.plan import ExpertPlan
from moec.runtime.artifact import checksum
from moec.runtime.artifact_folder import new_artifact
from moec.runtime.entries import StageEntry
from moec.runtime.foreign import foreign_artifact
from moec.runtime.manifest import (
    MANIFEST,
    WEIGHT_ALIGNMENT,
    WEIGHTS,
    BatchEntry,
    FileEntry,
    Manifest,
    MtpEntry,
    PipelineStage,
    ProgramEntry,
    ProjectEntry,
    TextEntry,
    WeightEntry,
    print_manifest,
)
from moec.runtime.residents import ProgramWeights
from moec.targets.base import KernelRecord, Made, Program, Project, Projects, Weight

WRITING = "writing the artifact"


@dataclasses.dataclass(frozen=True)
class Stage:
    """Text of the model after one step of the compilation; None where the step changed nothing."""

    name: str
    text: str | None


@dataclasses.dataclass(frozen=True)
class StageProgram:
    """Program of one stage of a pipeline, and its layers."""

    layers: range
    program: Program


@dataclasses.dataclass(frozen=True)
class Context:
    """Facts about a program that its artifact needs besides the program itself."""

    moec_version: str
    threads: int | None
    moe_blocks: list[Any]
    input_limits: dict[str, int]
    input_sizes: dict[str, str]
    counted_inputs: list[str]
    guards: list[str]
    states: list[State]
    stages: Sequence[Stage]
    remarks: list[Any]
    losses: list[Any]
    raised: list[Any]
    unraised: list[Any]
    provenance: dict[str, Any]
    stepwise_states: Sequence[str] = ()
    text: TextFiles | None = None
    plan: ExpertPlan | None = None
    sequences: str | None = None
    pipeline: Sequence[StageProgram] = ()
    batch: Program | None = None
    mtp: MtpProgram | None = None
    more_files: Callable[[pathlib.Path], Mapping[str, bytes]] | None = None
    """Function that makes further files, by path in the artifact, from the file of the weights."""


def write_artifact(
    path: str | os.PathLike[str], result: Made, context: Context, *others: Made, progress: Progress = silent
) -> None:
    """Write a program or projects as a folder, or as one zip when the path ends in ``.zip``. An artifact already there
    is replaced in one step where it is as moec wrote it (:func:`moec.runtime.foreign.foreign_artifact`).

    ``others``: the same model's programs for newer architectures, oldest first. Weights of equal name and content are
    stored once. ``progress`` is called with the weight that is being written.

    Raises ArtifactError when something else is there or the file system refuses (a full disk, for example); then
    nothing new is left behind and an older artifact is unharmed.
    """
    with new_artifact(path) as folder:
        _write_files(folder, [result, *others], context, progress)


def placed_weights(program: Program) -> tuple[list[WeightEntry], int]:
    """The places of a program's weights in ``weights.bin``, and the size of that file, where no other program shares
    it."""
    entries, end = [], 0
    for weight in program.weights:
        start = end + -end % WEIGHT_ALIGNMENT
        entries.append(WeightEntry(weight.name, weight.dtype, weight.shape, start, _bytes_of(weight)))
        end = start + _bytes_of(weight)
    return entries, end


def weights_of_programs(results: Sequence[Made], stages: Sequence[StageProgram]) -> list[ProgramWeights]:
    """List the weights of the programs that an artifact will run: those of its stages where it has some."""
    programs = [(stage.program, number) for number, stage in enumerate(stages)]
    whole = [(part, None) for part in results if isinstance(part, Program)]
    return [
        ProgramWeights(program.streamed, placed_weights(program)[0], stage, program.tables)
        for program, stage in programs or whole
    ]


def check_destination(path: str | os.PathLike[str]) -> None:
    """Raise ArtifactError where :func:`write_artifact` would not write."""
    check_replaceable(path, foreign_artifact, ArtifactError)


class _ArtifactFiles:
    """Files of an artifact that is being written."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.entries: dict[str, FileEntry] = {}

    def write(self, name: str, content: bytes) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.entries[name] = checksum(path)
        return name


def _write_files(folder: pathlib.Path, results: Sequence[Made], context: Context, progress: Progress) -> None:
    files = _ArtifactFiles(folder)
    programs = [part for part in results if isinstance(part, Program)]
    of_stages = [stage.program for stage in context.pipeline]
    of_batch = [] if context.batch is None else [context.batch]
    of_mtp = [] if context.mtp is None else [context.mtp.program]
    together = [*programs, *of_stages, *of_mtp, *of_batch]
    weights, positions, files.entries[WEIGHTS] = write_weights(folder / WEIGHTS, together, progress)
    if context.more_files is not None:
        for name, content in context.more_files(folder / WEIGHTS).items():
            files.write(name, content)
    first = results[0]
    manifest = Manifest(
        moec_version=context.moec_version,
        target=first.target if len(results) == 1 else _joint_target(programs),
        inputs=list(first.inputs),
        outputs=list(first.outputs),
        programs=[
            _write_program(
                files, program, indices, "" if len(programs) == 1 else f"{_file_name(program.architecture)}/"
            )
            for program, indices in zip(programs, positions, strict=False)
        ],
        projects=[
            _write_project(files, project)
            for part in results
            if isinstance(part, Projects)
            for project in part.projects
        ],
        weights=weights,
        files=files.entries,
        threads=context.threads,
        moe_blocks=context.moe_blocks,
        input_limits=context.input_limits,
        input_sizes=context.input_sizes,
        counted_inputs=context.counted_inputs,
        guards=context.guards,
        states=context.states,
        stepwise_states=list(context.stepwise_states),
        text=None if context.text is None else _write_text(files, context.text),
        stages=_write_stages(files, context.stages),
        remarks=context.remarks,
        losses=context.losses,
        raised=context.raised,
        unraised=context.unraised,
        provenance=context.provenance,
        plan=context.plan,
        sequences=context.sequences,
        pipeline=_write_pipeline(files, context.pipeline, positions[len(programs) :]),
        batch=None if context.batch is None else _write_batch(files, context.batch, positions[-1]),
        mtp=None if context.mtp is None else _write_mtp(files, context.mtp, positions[len(programs) + len(of_stages)]),
    )
    (folder / MANIFEST).write_text(print_manifest(manifest), encoding="utf-8")


def _write_text(files: _ArtifactFiles, text: TextFiles) -> TextEntry:
    template = text.chat_template
    return TextEntry(
        tokenizer=files.write("text/tokenizer.json", text.tokenizer.encode()),
        chat_template=None if template is None else files.write("text/chat_template.jinja", template.encode()),
        end_ids=list(text.end_ids),
        special_tokens=text.special_tokens,
        checked_by=text.checked_by,
        context=text.context,
    )


def _joint_target(programs: Sequence[Program]) -> str:
    """Join the programs' targets, as in ``cuda:sm_80+sm_90a``."""
    kind = programs[0].target.partition(":")[0]
    return f"{kind}:{'+'.join(program.architecture for program in programs)}"


def _write_program(files: _ArtifactFiles, program: Program, weights: list[int], place: str) -> ProgramEntry:
    """Write a program's files. ``place``: its own folder, ending in ``/``, or empty."""
    for name, text in program.sources.items():
        files.write(f"src/{place}{_file_name(name)}", text.encode())
    binary = None
    if program.binary is not None:
        name = _file_name(program.architecture)
        folder = place.removeprefix(f"{name}/")  # files say the architecture already
        binary = files.write(f"device/{folder}{name}{program.binary_suffix}", program.binary)
    return ProgramEntry(
        architecture=program.architecture,
        objects=[files.write(f"objects/{place}{_file_name(name)}", data) for name, data in program.objects.items()],
        weights=weights,
        requirements=list(program.requirements),
        binary=binary,
        held=list(program.held),
        lengths_in_memory=program.lengths_in_memory,
        fixed_lengths=list(program.fixed_lengths),
        streamed=list(program.streamed),
        tables=list(program.tables),
        blocks=dict(program.blocks),
        last=program.last,
        kernels=[
            _kernel_entry(
                kernel,
                {form: files.write(f"src/{place}{name}", text) for form, name, text in _source_files(kernel)},
                _write_structure(files, kernel, place),
            )
            for kernel in program.kernels
        ],
    )


def _write_pipeline(
    files: _ArtifactFiles, stages: Sequence[StageProgram], positions: Sequence[list[int]]
) -> list[PipelineStage]:
    return [
        PipelineStage(
            first=stage.layers[0],
            last=stage.layers[-1],
            inputs=stage.program.inputs,
            outputs=stage.program.outputs,
            program=_write_program(files, stage.program, indices, f"stage{number}/"),
        )
        for number, (stage, indices) in enumerate(zip(stages, positions, strict=False))
    ]


def _write_batch(files: _ArtifactFiles, program: Program, weights: list[int]) -> BatchEntry:
    return BatchEntry(program.inputs, program.outputs, _write_program(files, program, weights, "batch/"))


def _write_mtp(files: _ArtifactFiles, mtp: MtpProgram, weights: list[int]) -> MtpEntry:
    return mtp.entry(_write_program(files, mtp.program, weights, "mtp/"))


def _write_project(files: _ArtifactFiles, project: Project) -> ProjectEntry:
    folder = f"projects/{_file_name(project.name)}"
    for name, content in project.files.items():
        files.write(f"{folder}/{name}", content)
    return ProjectEntry(project.name, folder, project.report)


def _write_stages(files: _ArtifactFiles, stages: Sequence[Stage]) -> list[StageEntry]:
    written: list[StageEntry] = []
    for index, stage in enumerate(stages):
        changed = stage.text is not None
        if stage.text is None:
            file = written[-1]["file"]
        else:
            file = files.write(f"ir/{index:02d}-{_file_name(stage.name)}.onnxtxt", stage.text.encode())
        written.append({"name": stage.name, "changed": changed, "file": file})
    return written


def _write_structure(files: _ArtifactFiles, kernel: KernelRecord, place: str) -> str | None:
    if kernel.structure is None:
        return None
    text = json.dumps(dataclasses.asdict(kernel.structure), separators=(",", ":"))
    return files.write(f"src/{place}{_file_name(kernel.name)}.json", text.encode())


def _kernel_entry(kernel: KernelRecord, sources: dict[str, str], structure: str | None) -> Any:
    return {
        "name": kernel.name,
        "op": kernel.op,
        "nodes": list(kernel.nodes),
        "computes": kernel.computes,
        "attributes": kernel.attributes,
        "crossovers": list(kernel.crossovers),
        "work": work_as_data(kernel.work),
        "candidates": [dataclasses.asdict(candidate) for candidate in kernel.candidates],
        "parameters": [dataclasses.asdict(parameter) for parameter in kernel.parameters],
        "launches": [dataclasses.asdict(launch) for launch in kernel.launches],
        "sizes": kernel.sizes,
        "calls": kernel.calls,
        "sized_work": None if kernel.sized_work is None else dataclasses.asdict(kernel.sized_work),
        "sources": sources,
        "structure": structure,
    }


def _source_files(kernel: KernelRecord) -> Iterator[tuple[str, str, bytes]]:
    for form, text in kernel.sources.items():
        yield form, f"{_file_name(kernel.name)}{targets.forms()[form].suffix}", text.encode()


def write_weights(
    path: pathlib.Path, programs: Sequence[Program], progress: Progress
) -> tuple[list[WeightEntry], list[list[int]], FileEntry]:
    """Write the weights of all programs. Returns their list, the positions of each program's weights in it, and the
    file."""
    with path.open("wb") as file:
        sink = _WeightSink(file, shared=len(programs) > 1)
        positions = [
            [sink.add(weight) for weight in reported(program.weights, _bytes_of, progress, WRITING, "weight")]
            for program in programs
        ]
        file.flush()
        os.fsync(file.fileno())  # some file systems report a full disk only now
        return sink.entries, positions, FileEntry(file.tell(), sink.digest.hexdigest())


def _bytes_of(weight: Weight) -> int:
    return math.prod(weight.shape) * dtype_of(weight.dtype).itemsize


class _WeightSink:
    """Writer of ``weights.bin``: one weight after the other; those of equal name and content once, where several
    programs may share them (``shared``)."""

    def __init__(self, file: BinaryIO, *, shared: bool) -> None:
        self._file, self._shared = file, shared
        self.digest = hashlib.sha256()
        self.entries: list[WeightEntry] = []
        self._written: dict[tuple[Any, ...], int] = {}

    def add(self, weight: Weight) -> int:
        """Write a weight, unless it was written before, and return its position among the entries."""
        end, digest = self._file.tell(), self.digest.copy()
        self._append(bytes(-end % WEIGHT_ALIGNMENT))
        offset, content = self._file.tell(), hashlib.sha256()
        for piece in weight.pieces():
            data = piece.view(np.uint8).data
            if self._shared:
                content.update(data)
            self._append(data)
        key = (weight.name, weight.dtype, weight.shape, content.digest())
        if self._shared and key in self._written:
            self._file.seek(end)
            self._file.truncate()
            self.digest = digest
            return self._written[key]
        position = self._written[key] = len(self.entries)
        self.entries.append(WeightEntry(weight.name, weight.dtype, weight.shape, offset, self._file.tell() - offset))
        return position

    def _append(self, content: bytes | memoryview) -> None:
        self._file.write(content)
        self.digest.update(content)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.+-]", "_", name, flags=re.ASCII).lstrip(".") or "unnamed"
