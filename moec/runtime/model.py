"""A compiled model, as returned by ``moec.compile`` and ``moec.load``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from moec.common.arguments import check_path
from moec.common.errors import MoecError, UnsupportedError
from moec.common.specs import State, TensorSpec
from moec.runtime.artifact import Artifact, check_machine
from moec.runtime.artifact_folder import copy_artifact
from moec.runtime.batch import Batch
from moec.runtime.batch_program import BatchProgram
from moec.runtime.description import CompiledKernel, describe, kernels_of
from moec.runtime.device import Device
from moec.runtime.entries import RemarkEntry
from moec.runtime.executor import Executor
from moec.runtime.expert_counts import ExpertCounts
from moec.runtime.first_states import FirstStates
from moec.runtime.inputs import bound_inputs
from moec.runtime.interface import Interface
from moec.runtime.load_options import DEFAULTS, LoadOptions
from moec.runtime.manifest import ProgramEntry, digest_of
from moec.runtime.probe import Probe
from moec.runtime.row_tables import RowCounts
from moec.runtime.run_memory import RunMemory
from moec.runtime.saved_session import SavedSession
from moec.runtime.session import Session
from moec.runtime.streamed_experts import StreamCounts
from moec.runtime.streaming import check_alike
from moec.runtime.tuning import read_tuned


class CompiledModel:
    """A model that runs. ``moec.compile`` and ``moec.load`` make it. It may be called from several threads."""

    def __init__(self, artifact: Artifact, options: LoadOptions = DEFAULTS, device: Device | None = None) -> None:
        """``device``: where it runs; None for the processor."""
        check_machine(artifact)
        stage = None if options.stage is None else artifact.manifest.pipeline[options.stage]
        program = artifact.program(None if device is None else device.architecture) if stage is None else stage.program
        # A device reads the host's memory only once, so its pages do not matter.
        pages = "mapped" if device is not None and options.pages == "auto" else options.pages
        resident, preferred = options.resident_bytes, float(options.prefer_resident)
        self._counts = _counts_of(program, options, artifact.where)
        before = None if self._counts is None else self._counts.before
        placed = artifact.weights(program, pages, resident, preferred, options.rank, before)
        weights, self.placement, streamed = placed
        self._experts, self._tables = (None, None) if streamed is None else (streamed.experts, streamed.tables)
        self.artifact, self.interface = artifact, Interface.of(artifact.manifest)
        self._options, self._device = options, device
        self._executor = Executor(
            artifact.object_paths(program),
            self.interface if stage is None else self.interface.of_stage(stage),
            weights,
            threads=artifact.manifest.threads if options.threads is None else options.threads,
            where=artifact.where,
            device=device,
            cuda_graphs=options.cuda_graphs,
            held_states=program.held,
            lengths_in_memory=program.lengths_in_memory,
            fixed_lengths=bool(program.fixed_lengths),
            last=program.last,
            streamed=streamed,
            files=artifact,
        )
        self._run_memory = (
            RunMemory(artifact.where, program.blocks, lambda: device.free_bytes) if device and program.blocks else None
        )
        self._first_states = FirstStates(self.interface)
        self.kernels: dict[str, CompiledKernel] = kernels_of(artifact, program)
        crossovers = {name for kernel in self.kernels.values() for name in kernel.crossovers}
        self._weights = dict(zip(program.weights, weights, strict=True))
        self._of_batch: BatchProgram | None = None
        self._of_mtp: Executor | None = None
        named = zip(artifact.weight_entries(program), weights, strict=True)
        self.probe = Probe(self._executor, {entry.name: array for entry, array in named if entry.name in crossovers})
        # Measured crossovers do not apply to an emulator.
        if crossovers and (device is None or device.gpu is not None):
            self.probe.set_crossovers(read_tuned(self.gpu))

    def reloaded(self) -> CompiledModel:
        """Load the artifact again, on the same device and with the same options: with crossovers that were measured in
        the meantime."""
        return CompiledModel(self.artifact, self._options, self._device)

    def __repr__(self) -> str:
        states = {name for state in self.states for name in (state.input, state.output)}
        inputs, outputs = (
            ", ".join(str(spec) for spec in specs if spec.name not in states) for specs in (self.inputs, self.outputs)
        )
        kept = f"{len(self.states)} states, " if self.states else ""
        blocks = f"{len(self.artifact.manifest.moe_blocks)} MoE blocks, {len(self.kernels)} kernels"
        return f"<CompiledModel for {self.target}: {inputs} -> {outputs}; {kept}{blocks}, {self.threads} threads>"

    @property
    def remarks(self) -> list[RemarkEntry]:
        """Remarks of the passes: dicts of ``pass_name``, ``subject``, ``message`` and ``severity``."""
        return self.artifact.manifest.remarks

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        return self.interface.inputs

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        return self.interface.outputs

    @property
    def guards(self) -> Sequence[str]:
        """Conditions on the named sizes of the inputs; :meth:`run` refuses sizes that violate one."""
        return self.interface.guards

    @property
    def states(self) -> Sequence[State]:
        """Outputs that the next run takes as inputs; :meth:`session` keeps them."""
        return self.interface.states

    @property
    def digest(self) -> str:
        """Identity of the artifact, wherever it is stored: SHA-256 of its manifest, as hexadecimal digits."""
        return digest_of(self.artifact.manifest)

    @property
    def gpu(self) -> str | None:
        """Name of the GPU that it runs on; None for the processor, and for an emulated GPU."""
        return None if self._device is None else self._device.gpu

    @property
    def streamed(self) -> StreamCounts | None:
        """Counts of reads and waits since it was loaded; None where all experts that it computes are in memory."""
        return None if self._experts is None or self._experts.has_room_for_all else self._experts.counts

    @property
    def looked_up(self) -> RowCounts | None:
        """Counts of rows of tables since it was loaded; None where all tables are in memory."""
        return None if self._tables is None else self._tables.counts

    def save_counts(self) -> None:
        """Add how often each expert was chosen to the file ``keep_counts`` of :func:`moec.load`. Without it, and where
        all weights fit into memory, nothing is written. Raises MoecError where the file cannot be written."""
        if self._counts is not None and self._experts is not None:
            self._counts.add(self._experts.chosen)

    @property
    def expert_bytes(self) -> int:
        """Bytes of streamed experts that are in memory; 0 where all weights are."""
        return 0 if self._experts is None else self._experts.used

    @property
    def threads(self) -> int:
        return self._executor.threads

    def run(self, inputs: Mapping[str, Any], *, last: int | None = None) -> dict[str, Any]:
        """Run on arrays by input name (numpy arrays, or anything with DLPack in host memory, such as torch tensors).

        Arrays are read in place if they are C-contiguous and aligned to 16 bytes, as numpy makes them, and copied
        otherwise. A model for a GPU also takes tensors on it, on PyTorch's current stream. If any input is on the GPU,
        all outputs are: tensors of PyTorch if an input was one, else objects with DLPack. They are complete in the
        order of that stream; the host does not wait. Either all states (:attr:`states`) are given or none; without
        states the run begins a text. ``last``: number of last tokens for which a language model computes logits, if the
        program can omit others; None for all tokens. Raises InputError if names, dtypes, ranks or sizes do not fit,
        MoecError if the GPU is out of memory.
        """
        return self._executor.run(self._first_states.beside(inputs), last)

    def __call__(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        """Run like :meth:`run`, with inputs by position, by name, or both."""
        return self.run(bound_inputs([spec.name for spec in self.inputs], arguments, named))

    def session(
        self, max_tokens: int | None = None, batch: int = 1, *, load: str | os.PathLike[str] | None = None
    ) -> Session:
        """Begin a :class:`moec.Session` of a language model: each run continues from the tokens before.

        ``max_tokens``: the most that it will hold, None if no limit is necessary. ``batch``: number of sequences that
        run together. ``load``: file of :meth:`moec.Session.save` to continue from. Raises InputError for a model
        without token ids or logits, or with states of an unknown size, and for a file of another artifact or that does
        not fit.
        """
        session = self._new_session(max_tokens, batch)
        if load is not None:
            check_path("load", load)
            session.check_saving()
            session.load(SavedSession.read(load, self.digest))
        return session

    def _new_session(self, max_tokens: int | None, batch: int) -> Session:
        return Session(self.interface, self._executor, max_tokens, batch, self._run_memory, lambda: self.digest)

    def batch(self, max_sequences: int, max_tokens: int, *, step_tokens: int | None = None) -> Batch:
        """Make a :class:`moec.Batch` of a language model that was compiled with ``batches``: sequences of different
        lengths that run together.

        ``max_sequences``: the most sequences at once. ``max_tokens``: the most tokens of all sequences together, in
        pages of 256; the system provides memory as it is written to. ``step_tokens``: the most tokens of a step, 256 or
        more; None for one part of a prompt and one token of each other sequence. Raises InputError for other numbers,
        UnsupportedError for a model without such a program or loaded with ``prefer_resident``, and MoecError if memory
        is insufficient.
        """
        return Batch(self.interface, self._batch_program(), max_sequences, max_tokens, step_tokens)

    def _batch_program(self) -> BatchProgram:
        """The program of batches, which is loaded once."""
        if self._of_batch is None:
            entry = self.artifact.manifest.batch
            if entry is None:
                raise UnsupportedError(
                    f"{self.artifact.where}: has no program for batches of sequences; compile it with batches "
                    "(moec compile --batches)"
                )
            if self._experts is not None:
                self._check_streaming_of(entry.program)
            more = self.artifact.more_weights(entry.program, self._weights)
            placed = dict(zip(self._weights, self._executor.placed_weights, strict=True))
            self._of_batch = BatchProgram(
                self.artifact, entry, more, placed, self._executor, self._device, cuda_graphs=self._options.cuda_graphs
            )
        return self._of_batch

    def _check_streaming_of(self, batch: ProgramEntry) -> None:
        """Check that the program of batches can share weights that are not all in memory. The model's own program is
        the only one of a processor."""
        if self._options.prefer_resident:
            raise UnsupportedError(
                f"{self.artifact.where}: with prefer_resident a sequence would depend on what runs beside it; load it "
                "without, or run sessions"
            )
        check_alike(self.artifact.manifest.programs[0], batch, self.artifact.where)

    def mtp_session(self, max_tokens: int | None = None) -> Session:
        """Begin a session of the MTP layer of a model that was compiled with ``drafts="mtp"``: it takes tokens and, as
        ``previous_hidden``, the hidden states of the tokens before them.

        ``max_tokens``: as for :meth:`session`. Raises UnsupportedError for a model without one."""
        entry = self.artifact.manifest.mtp
        if entry is None:
            raise UnsupportedError(
                f"{self.artifact.where}: has no MTP layer; compile it with drafts (moec compile --drafts mtp), or "
                "generate with other drafts or none"
            )
        if self._device is not None or self._experts is not None:
            raise UnsupportedError(
                f"{self.artifact.where}: MTP layers run on a processor, with all weights in memory; load it so"
            )
        interface, program = Interface.of(entry), entry.program
        if self._of_mtp is None:
            self._of_mtp = Executor(
                self.artifact.object_paths(program),
                interface,
                self.artifact.more_weights(program, self._weights),
                threads=self.threads,
                where=self.artifact.where,
                held_states=program.held,
                last=program.last,
                files=self.artifact,
            )
        return Session(interface, self._of_mtp, max_tokens)

    @property
    def target(self) -> str:
        """Target it was compiled for, such as ``cpu`` or ``cpu:avx2``."""
        return self.artifact.manifest.target

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the artifact to a folder, or to one zip when the path ends in ``.zip``. Raises ArtifactError."""
        check_path("path", path)
        copy_artifact(self.artifact, path)

    def describe(self) -> dict[str, Any]:
        """Describe the model as plain data: target, inputs, outputs, MoE blocks, kernels, weights, passes, remarks."""
        return describe(self.artifact)


def _counts_of(program: ProgramEntry, options: LoadOptions, where: str) -> ExpertCounts | None:
    if options.keep_counts is None:
        return None
    if not program.streamed:
        raise MoecError(f"{where}: was compiled to have all in memory; leave keep_counts out, or compile it --resident")
    return ExpertCounts(options.keep_counts, program.streamed)
