"""The manifest of an artifact: plain data about everything in it.

A manifest is not trusted: every field's type is checked, every file name must stay inside the folder, and every weight
must be inside ``weights.bin`` before anything is opened (:mod:`moec.runtime.read_manifest`). Its digest detects
accidental changes only. An artifact contains machine code, so load artifacts only from people whose programs you would
run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from moec.common.dtypes import ElementType
from moec.common.records import Size
from moec.common.specs import HeldState, LastTokens, State, StreamedExpertsSpec, TensorSpec
from moec.placing.placement import ExpertPlacement
from moec.placing.plan import ExpertPlan
from moec.runtime.entries import BlockEntry, KernelEntry, LossEntry, RaisedEntry, RemarkEntry, StageEntry, UnraisedEntry

FORMAT_VERSION = 31
MANIFEST = "manifest.json"
WEIGHTS = "weights.bin"
GENERIC = "generic"  # candidate for nodes without a kernel template: operators in plain loops
WEIGHT_ALIGNMENT = 4096  # one page: weights are mapped, and kernels assume at least 64-byte alignment


@dataclasses.dataclass(frozen=True)
class WeightEntry:
    """Place of one constant in ``weights.bin``."""

    name: str
    dtype: ElementType
    shape: tuple[Size, ...]
    offset: Size
    bytes: Size


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """Size and checksum of one file of the artifact."""

    bytes: Size
    sha256: str


@dataclasses.dataclass
class ProgramEntry:
    """One program of an artifact: the model for one kind of machine.

    ``architecture``: of its device (``sm_80``), empty where it needs none. ``weights``: positions in the manifest's
    list, in the order in which the entry function takes them after the inputs. ``requirements``: features of the
    processor. ``binary``: file of code for the device, None where there was no compiler for it. ``held``: states for
    which it takes pages. ``lengths_in_memory``: whether it takes their lengths in use as tensors int64[1], too, after
    the shape of all; ``fixed_lengths``: nodes because of which a captured run serves no other lengths. ``streamed``:
    experts that it requests before it uses them. ``tables``: positions among ``weights`` of those of which it only
    looks up rows, by a call of the runtime. ``blocks``: of a program for a device, how many blocks of memory a run
    takes, by their bytes as an expression of sizes in C. ``last``: output of which it computes only the requested last
    positions. ``kernels`` are plain data for people.
    """

    architecture: str
    objects: list[str]
    weights: list[int]
    requirements: list[str] = dataclasses.field(default_factory=list)
    binary: str | None = None
    held: list[HeldState] = dataclasses.field(default_factory=list)
    lengths_in_memory: bool = False
    fixed_lengths: list[str] = dataclasses.field(default_factory=list)
    streamed: list[StreamedExpertsSpec] = dataclasses.field(default_factory=list)
    tables: list[int] = dataclasses.field(default_factory=list)
    blocks: dict[str, int] = dataclasses.field(default_factory=dict)
    last: LastTokens | None = None
    kernels: list[KernelEntry] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class PipelineStage:
    """Stage of a pipeline: layers from ``first`` to ``last``, and their program. Its inputs are all inputs of the model
    except the states of other stages, and outputs of earlier stages; values of one name are one value."""

    first: Size
    last: Size
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    program: ProgramEntry


@dataclasses.dataclass
class BatchEntry:
    """The program of a batch of sequences (:mod:`moec.ir.batches`), and the inputs and outputs of its graph."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    program: ProgramEntry


@dataclasses.dataclass
class MtpEntry:
    """The program of a model's MTP layer, which takes its output ``hidden``. Other fields are those of
    :class:`Manifest`."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    states: list[State]
    input_limits: dict[str, int]
    input_sizes: dict[str, str]
    counted_inputs: list[str]
    guards: list[str]
    program: ProgramEntry


@dataclasses.dataclass
class ProjectEntry:
    """Sources of an artifact, in ``folder``, that another tool builds. ``report``: plain data about the selected
    design."""

    name: str
    folder: str
    report: dict[str, Any]


@dataclasses.dataclass
class TextEntry:
    """Conversion between text and token ids: the files of a ``tokenizer.json`` and of a chat template (None where there
    is none), the ids that end a text, special tokens by their names in templates, and the version of the package
    ``tokenizers`` that has read the first without harm, if any. ``context``: the most tokens of a text that the model
    was trained for, where that is known."""

    tokenizer: str
    chat_template: str | None
    end_ids: list[int]
    special_tokens: dict[str, str]
    checked_by: str | None = None
    context: Size | None = None


@dataclasses.dataclass
class Manifest:
    """All data about an artifact except the contents of its files.

    ``programs`` are for different architectures, oldest first; ``weights`` are those of all programs. An artifact for
    an FPGA has ``projects`` in their place. ``threads``: default number of threads of a program; None for all available
    cores. ``input_limits``:
    bound of the values of an integer input (token ids: the vocabulary), where known. ``input_sizes``: named sizes that
    are the sum of others (the attention mask: past and new tokens). ``counted_inputs``: inputs whose values give the
    lengths of sequences (a mask whose ones are counted). ``guards``: conditions on named sizes of the inputs, outside
    of which the program would compute something else than the model: see :mod:`moec.common.guards`. ``states``: outputs
    that the next run takes as inputs; ``stepwise_states``: inputs of those that each run replaces whose bits do not
    depend on how tokens were split into runs. ``text``: of a language model that takes text. ``moe_blocks``, ``stages``
    and ``remarks`` are plain data for people, as are ``raised`` and ``unraised``: evidence for each MoE block that was
    raised, and regions that resemble one. ``losses``: of each layer, by passes that round weights.
    ``plan``: of the layers of experts, which ranks hold which and which stay in memory; None where one process has all
    in its memory. ``sequences``: the named size that
    counts sequences, of which each is computed as if it were alone; None where that is not known.
    ``pipeline``: stages by layers, for a process each; empty where a process runs the whole model alone. ``batch``: for
    sequences of different lengths together, and ``mtp``: layer that drafts; None where it was not compiled.
    """

    moec_version: str
    target: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    programs: list[ProgramEntry]
    weights: list[WeightEntry]
    files: dict[str, FileEntry]
    projects: list[ProjectEntry] = dataclasses.field(default_factory=list)
    threads: int | None = None
    input_limits: dict[str, int] = dataclasses.field(default_factory=dict)
    input_sizes: dict[str, str] = dataclasses.field(default_factory=dict)
    counted_inputs: list[str] = dataclasses.field(default_factory=list)
    guards: list[str] = dataclasses.field(default_factory=list)
    states: list[State] = dataclasses.field(default_factory=list)
    stepwise_states: list[str] = dataclasses.field(default_factory=list)
    text: TextEntry | None = None
    moe_blocks: list[BlockEntry] = dataclasses.field(default_factory=list)
    stages: list[StageEntry] = dataclasses.field(default_factory=list)
    remarks: list[RemarkEntry] = dataclasses.field(default_factory=list)
    losses: list[LossEntry] = dataclasses.field(default_factory=list)
    raised: list[RaisedEntry] = dataclasses.field(default_factory=list)
    unraised: list[UnraisedEntry] = dataclasses.field(default_factory=list)
    plan: ExpertPlan | None = None
    sequences: str | None = None
    pipeline: list[PipelineStage] = dataclasses.field(default_factory=list)
    batch: BatchEntry | None = None
    mtp: MtpEntry | None = None
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def placement(self) -> ExpertPlacement | None:
        """Ranks that hold the experts; None where each process holds all."""
        return None if self.plan is None else self.plan.placement

    @property
    def resident(self) -> int | None:
        """Bytes of memory that weights take in a process; None where all are in memory."""
        return None if self.plan is None else self.plan.resident


def all_programs(manifest: Manifest) -> list[tuple[ProgramEntry, Sequence[TensorSpec], Sequence[TensorSpec]]]:
    """List the programs of the whole model, of the stages, of batches and of drafts, with their inputs and outputs."""
    whole = [(program, manifest.inputs, manifest.outputs) for program in manifest.programs]
    parts = [*manifest.pipeline, *(part for part in (manifest.batch, manifest.mtp) if part is not None)]
    return [*whole, *((part.program, part.inputs, part.outputs) for part in parts)]


def print_manifest(manifest: Manifest) -> str:
    """Write the text of ``manifest.json``; :func:`parse_manifest` reads it back."""
    content = {"format_version": FORMAT_VERSION, **dataclasses.asdict(manifest)}
    return json.dumps({**content, "digest": digest_of(manifest)}, indent=1)


def digest_of(manifest: Manifest) -> str:
    """Compute the digest in ``manifest.json``, which also depends on the checksums of all files of the artifact."""
    return digest_of_content({"format_version": FORMAT_VERSION, **dataclasses.asdict(manifest)})


def digest_of_content(content: dict[str, Any]) -> str:
    """Compute the digest of content as it is read back: number keys become text in JSON, and are sorted as such."""
    content = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
