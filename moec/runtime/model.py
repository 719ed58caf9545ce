"""A compiled model, as returned by ``moec.compile`` and ``moec.load``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from moec.common.arguments import (
    check_choice,
    check_flags,
    check_kind,
    check_optional_text,
    check_path,
    known_options,
)
from moec.common.byte_counts import bytes_of
from moec.common.errors import MoecError, reporting
from moec.common.specs import HeldState, State, TensorSpec
from moec.runtime.artifact import Artifact, check_machine, open_artifact
from moec.runtime.description import CompiledKernel, describe, kernels_of
from moec.runtime.device import Device
from moec.runtime.devices import device_of
from moec.runtime.entries import RemarkEntry
from moec.runtime.executor import Executor, Watch
from moec.runtime.first_states import FirstStates
from moec.runtime.held import StateMemory
from moec.runtime.inputs import bound_inputs
from moec.runtime.machine import check_threads
from moec.runtime.manifest import digest_of
from moec.runtime.pages import Pages
from moec.runtime.streamed_experts import StreamCounts
from moec.runtime.tuning import read_tuned
from moec.runtime.writer import copy_artifact

if TYPE_CHECKING:
    from moec.runtime.session import Session


class CompiledModel:
    """A model that runs. ``moec.compile`` and ``moec.load`` make it. It may be called from several threads."""

    def __init__(
        self,
        artifact: Artifact,
        *,
        threads: int | None = None,
        pages: Pages = "auto",
        device: Device | None = None,
        cuda_graphs: bool = False,
        resident: int | None = None,
        prefer_resident: float = 0.0,
    ) -> None:
        check_machine(artifact)
        manifest = artifact.manifest
        # A device reads the host's memory only once, so its pages do not matter.
        pages = "mapped" if device is not None and pages == "auto" else pages
        program = artifact.program(None if device is None else device.architecture)
        weights, self.placement, self._experts = artifact.weights(program, pages, resident, prefer_resident)
        self._artifact = artifact
        named = zip(artifact.weight_entries(program), weights, strict=True)
        self.kernels: dict[str, CompiledKernel] = kernels_of(artifact, program)
        crossovers = {name for kernel in self.kernels.values() for name in kernel.crossovers}
        self._crossovers = {entry.name: array for entry, array in named if entry.name in crossovers}
        self._device = device
        # Measured crossovers do not apply to an emulator.
        if self._crossovers and (device is None or device.gpu is not None):
            self._write_crossovers(read_tuned(self.gpu))
        self._executor = Executor(
            artifact.object_paths(program),
            manifest.inputs,
            manifest.outputs,
            weights,
            guards=manifest.guards,
            threads=threads if threads is not None else manifest.threads,
            where=artifact.where,
            device=device,
            cuda_graphs=cuda_graphs,
            held=program.held,
            last=program.last,
            experts=self._experts,
        )
        self._first_states = FirstStates(manifest.states, manifest.inputs, manifest.outputs)

    def __repr__(self) -> str:
        states = {name for state in self.states for name in (state.input, state.output)}
        given, made = (
            ", ".join(str(spec) for spec in specs if spec.name not in states) for specs in (self.inputs, self.outputs)
        )
        kept = f"{len(self.states)} states, " if self.states else ""
        blocks = f"{len(self._artifact.manifest.moe_blocks)} MoE blocks, {len(self.kernels)} kernels"
        return f"<CompiledModel for {self.target}: {given} -> {made}; {kept}{blocks}, {self.threads} threads>"

    @property
    def remarks(self) -> list[RemarkEntry]:
        """Remarks of the passes: dicts of ``pass_name``, ``subject``, ``message`` and ``severity``."""
        return self._artifact.manifest.remarks

    @property
    def inputs(self) -> list[TensorSpec]:
        return self._artifact.manifest.inputs

    @property
    def outputs(self) -> list[TensorSpec]:
        return self._artifact.manifest.outputs

    @property
    def input_limits(self) -> dict[str, int]:
        """Bounds of integer inputs that index something (token ids), where known; values must stay below."""
        return self._artifact.manifest.input_limits

    @property
    def input_sizes(self) -> dict[str, str]:
        """Named sizes of the inputs that are the sum of others in sensible inputs, such as the length of a mask."""
        return self._artifact.manifest.input_sizes

    @property
    def counted_inputs(self) -> list[str]:
        """Inputs whose values give the lengths of sequences, such as a mask whose ones are counted."""
        return self._artifact.manifest.counted_inputs

    @property
    def guards(self) -> list[str]:
        """Conditions on the named sizes of the inputs; :meth:`run` refuses sizes that violate one."""
        return self._artifact.manifest.guards

    @property
    def states(self) -> list[State]:
        """Outputs that the next run takes as inputs; :meth:`session` keeps them."""
        return self._artifact.manifest.states

    @property
    def first_states(self) -> FirstStates:
        """States with which :meth:`run` begins a text when it gets none."""
        return self._first_states

    @property
    def digest(self) -> str:
        """Identity of the artifact, wherever it is stored: SHA-256 of its manifest, as hexadecimal digits."""
        return digest_of(self._artifact.manifest)

    @property
    def gpu(self) -> str | None:
        """Name of the GPU that it runs on; None for the processor, and for an emulated GPU."""
        return None if self._device is None else self._device.gpu

    @property
    def streamed(self) -> StreamCounts | None:
        """Counts of reads and waits since it was loaded; None where all experts are in memory."""
        return None if self._experts is None else self._experts.counts

    @property
    def threads(self) -> int:
        return self._executor.threads

    def run(self, inputs: Mapping[str, Any], *, last: int | None = None) -> dict[str, Any]:
        """Run on arrays by input name (numpy arrays, or anything with DLPack in host memory, such as torch tensors).

        Arrays are read in place when C-contiguous and 16-byte aligned, as numpy makes them, and copied otherwise. A
        model for a GPU also takes tensors on it, on PyTorch's current stream. If any input is one, all outputs are:
        tensors of PyTorch where an input was one, else objects with DLPack. They are complete in the order of that
        stream; the host does not wait. States (:attr:`states`) may be left out, all of them together: then the run
        begins a text. ``last``: for a language model, the number of last tokens whose logits are computed, where the
        program can omit others; None for all tokens. Raises InputError when names, dtypes, ranks or sizes do not fit;
        MoecError when the GPU is out of memory.
        """
        return self._executor.run(self._first_states.beside(inputs), last)

    @property
    def held(self) -> Sequence[HeldState]:
        """States that :meth:`run_in_place` keeps in place; each run copies the others."""
        return self._executor.held

    def state_memory(self, shapes: Mapping[str, Sequence[int]], tokens: int | None) -> StateMemory:
        """Allocate memory for :meth:`run_in_place`, for the states of :attr:`held` with the shapes that they have while
        empty."""
        return self._executor.state_memory(shapes, tokens)

    def run_in_place(
        self, inputs: Mapping[str, Any], memory: StateMemory, *, last: int | None = None
    ) -> dict[str, Any]:
        """Run like :meth:`run`, with the states of :attr:`held` in ``memory`` instead of inputs and outputs; see
        :meth:`session`. Raises MoecError where they outgrow the system's memory."""
        return self._executor.run_in_place(inputs, memory, last)

    def __call__(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        """Run like :meth:`run`, with inputs by position, by name, or both."""
        return self.run(bound_inputs([spec.name for spec in self.inputs], arguments, named))

    @property
    def artifact(self) -> Artifact:
        """The artifact that it was loaded from."""
        return self._artifact

    def session(self, max_tokens: int | None = None, batch: int = 1) -> Session:
        """Begin a :class:`moec.Session` of a language model: each run continues from the tokens before.

        ``max_tokens``: the most that it will hold, None where no limit is necessary. ``batch``: number of sequences
        that run together. Raises InputError for a model without token ids or logits, or with states of an unknown size.
        """
        from moec.runtime.session import Session

        return Session(self, max_tokens, batch)

    def time_kernels(self, inputs: Mapping[str, Any]) -> list[tuple[str, float]]:
        """Run once and return the (name, seconds) of every kernel call in order."""
        return self._executor.time_kernels(inputs)

    def watch_kernels(self, inputs: Mapping[str, Any], watch: Watch, before: Watch | None = None) -> None:
        """Run once and call ``watch`` with the name and the arguments, results included, after each kernel, and
        ``before`` before it."""
        self._executor.watch_kernels(inputs, watch, before)

    def time_run(self, inputs: Mapping[str, Any]) -> float:
        """Measure the seconds of one run, without moving inputs to a GPU and outputs back."""
        return self._executor.time_run(inputs)

    def shapes_of_calls(self, inputs: Mapping[str, Any]) -> list[tuple[str, list[tuple[int, ...]]]]:
        """Run once and return the (name, shapes of its tensors) of every kernel call in order."""
        return self._executor.shapes_of_calls(inputs)

    @property
    def crossovers(self) -> dict[str, int]:
        """Crossovers by shape: the number of rows from which a kernel with two ways takes the second; tokens on a
        GPU."""
        return {name: int(array.item()) for name, array in self._crossovers.items()}

    def set_crossovers(self, rows: Mapping[str, int]) -> None:
        """Change crossovers of this model alone; unknown names are ignored. See ``moec tune``."""
        self._write_crossovers(rows)
        self._executor.renew_numbers()

    def _write_crossovers(self, rows: Mapping[str, int]) -> None:
        for name in self._crossovers.keys() & rows.keys():
            self._crossovers[name][...] = rows[name]

    @property
    def target(self) -> str:
        """Target it was compiled for, such as ``cpu`` or ``cpu:avx2``."""
        return self._artifact.manifest.target

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the artifact to a folder, or to one zip when the path ends in ``.zip``. Raises ArtifactError."""
        check_path("path", path)
        copy_artifact(self._artifact, path)

    def describe(self) -> dict[str, Any]:
        """Describe the model as plain data: target, inputs, outputs, MoE blocks, kernels, weights, passes, remarks."""
        return describe(self._artifact)


@reporting("loading")
@known_options
def load(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    check_weights: bool = True,
    pages: Pages = "auto",
    emulate: bool = False,
    architecture: str | None = None,
    cuda_graphs: bool = False,
    resident: int | str | None = None,
    prefer_resident: float = 0.0,
) -> CompiledModel:
    """Load an artifact.

    ``threads``: None means as compiled, by default every available core. ``emulate``: run code for a GPU on the
    processor, slowly; needs g++. ``architecture``: program to run, where there are several for GPUs (``sm_80``); by
    default the best for the GPU, or the newest where it is emulated. ``cuda_graphs``: from the second run with the same
    input sizes on, launch all kernels of a run at once, which is faster for few tokens; inputs and outputs are copied,
    and each set of sizes keeps its memory. Sessions that keep states in place gain nothing, because no two of their
    runs have the same sizes. ``check_weights=False`` skips the checksum of ``weights.bin``, which takes about a second
    per gigabyte.

    ``pages``: ``mapped`` maps weights from their file; ``huge`` copies them into huge pages, which are read faster
    where the system does not map files so; ``auto`` decides by their size, the free memory and the system. ``streamed``
    keeps at most ``resident`` bytes of weights in memory (a number, or a text such as ``8GiB``; by default as
    compiled), and reads experts when they are selected; ``auto`` does so for a model that was compiled so and does not
    fit. ``prefer_resident``: replace a selected expert that is not in memory, except a token's first, by one that is,
    if that loses at most this share of its weight (0.1: a tenth); results then depend on earlier runs.

    Raises ArtifactError when the artifact is truncated, altered, of another format version or for another machine;
    MoecError for huge pages, a GPU or a compiler that is not available; UnsupportedError for graphs of a model that has
    sizes which depend on data, or that does not run on a GPU.
    """
    check_path("path", path)
    check_threads(threads)
    check_choice("pages", pages, get_args(Pages))
    check_flags(check_weights=check_weights, emulate=emulate, cuda_graphs=cuda_graphs)
    check_optional_text(architecture=architecture)
    artifact = open_artifact(path, check_weights=check_weights)
    options: dict[str, Any] = {"emulate": emulate, "architecture": architecture, "cuda_graphs": cuda_graphs}
    limit = None if resident is None else bytes_of("resident", resident)
    check_kind("prefer_resident", prefer_resident, (int, float), "a share from 0 to 1")
    if not 0 <= prefer_resident <= 1:
        raise MoecError(f"prefer_resident is {prefer_resident}; expected a share from 0 to 1")
    options |= {"resident": limit, "prefer_resident": float(prefer_resident)}
    return ready(artifact, threads=threads, pages=pages, **options)


@reporting("loading")
def ready(
    artifact: Artifact,
    *,
    threads: int | None = None,
    pages: Pages = "auto",
    emulate: bool = False,
    architecture: str | None = None,
    cuda_graphs: bool = False,
    resident: int | None = None,
    prefer_resident: float = 0.0,
) -> CompiledModel:
    """Do the work of :func:`load` for an open artifact."""
    device = device_of(artifact, emulate=emulate, architecture=architecture)
    options: dict[str, Any] = {"device": device, "cuda_graphs": cuda_graphs}
    options |= {"resident": resident, "prefer_resident": prefer_resident}
    return CompiledModel(artifact, threads=threads, pages=pages, **options)
