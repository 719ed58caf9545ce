"""A compiled model: what ``moec.compile`` and ``moec.load`` return."""

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
from moec.common.specs import HeldState, State, TensorSpec
from moec.errors import MoecError, reporting
from moec.runtime.artifact import Artifact, check_machine, open_artifact
from moec.runtime.description import CompiledKernel, describe, kernels_of
from moec.runtime.device import Device
from moec.runtime.devices import device_of
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
    """A model that runs. Made by ``moec.compile`` or ``moec.load``; may be called from several threads."""

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
        # A device reads the host's memory once, whatever its pages are.
        pages = "mapped" if device is not None and pages == "auto" else pages
        program = artifact.program(None if device is None else device.architecture)
        weights, self.placement, self._experts = artifact.weights(program, pages, resident, prefer_resident)
        self._artifact = artifact
        named = zip(artifact.weight_entries(program), weights, strict=True)
        self.kernels: dict[str, CompiledKernel] = kernels_of(artifact, program)
        crossovers = {name for kernel in self.kernels.values() for name in kernel.crossovers}
        self._crossovers = {entry.name: array for entry, array in named if entry.name in crossovers}
        self._device = device
        # Nothing is known about the times of an emulator.
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
    def remarks(self) -> list[dict[str, Any]]:
        """What the passes had to tell: dicts of ``pass_name``, ``subject``, ``message`` and ``severity``."""
        return self._artifact.manifest.remarks

    @property
    def inputs(self) -> list[TensorSpec]:
        return self._artifact.manifest.inputs

    @property
    def outputs(self) -> list[TensorSpec]:
        return self._artifact.manifest.outputs

    @property
    def input_limits(self) -> dict[str, int]:
        """For integer inputs that index something (token ids): the value they must stay below, where known."""
        return self._artifact.manifest.input_limits

    @property
    def input_sizes(self) -> dict[str, str]:
        """Named sizes of the inputs that are the sum of others for sensible inputs, such as the length of a mask."""
        return self._artifact.manifest.input_sizes

    @property
    def counted_inputs(self) -> list[str]:
        """The inputs that say by their numbers how long sequences are, such as a mask whose ones are counted."""
        return self._artifact.manifest.counted_inputs

    @property
    def guards(self) -> list[str]:
        """Conditions on the named sizes of the inputs, outside of which :meth:`run` refuses to run."""
        return self._artifact.manifest.guards

    @property
    def states(self) -> list[State]:
        """The outputs that the next run takes as inputs: what :meth:`session` keeps."""
        return self._artifact.manifest.states

    @property
    def first_states(self) -> FirstStates:
        """The states that :meth:`run` begins a text with where it is given none."""
        return self._first_states

    @property
    def digest(self) -> str:
        """What tells the artifact from all others, wherever it lies: SHA-256 of its manifest, as hexadecimal digits."""
        return digest_of(self._artifact.manifest)

    @property
    def gpu(self) -> str | None:
        """The name of the GPU that it runs on; None for the processor, and where a GPU is emulated."""
        return None if self._device is None else self._device.gpu

    @property
    def streamed(self) -> StreamCounts | None:
        """What was read and waited for since it was loaded; None where its experts are all in memory."""
        return None if self._experts is None else self._experts.counts

    @property
    def threads(self) -> int:
        return self._executor.threads

    def run(self, inputs: Mapping[str, Any], *, last: int | None = None) -> dict[str, Any]:
        """Run on arrays by input name (numpy arrays, or anything with DLPack in host memory, such as torch tensors).

        Arrays are read in place when C-contiguous and 16-byte aligned, as numpy makes them, and copied otherwise.
        A model for a GPU also takes tensors that are there, on PyTorch's current stream. If any input is one, all
        outputs are: tensors of PyTorch where one was given, else something with DLPack. They are complete in the order
        of that stream, for which the host does not wait.
        States (:attr:`states`) may be left out, all of them: then the run begins a text.
        ``last``: of a language model, compute the logits of so many of the last tokens, where the program can leave the
        others out; None: of all tokens.
        Raises InputError when names, dtypes, ranks or sizes do not fit; MoecError when the GPU is out of memory.
        """
        return self._executor.run(self._first_states.beside(inputs), last)

    @property
    def held(self) -> Sequence[HeldState]:
        """The states that :meth:`run_in_place` keeps where they lie; others are copied by each run."""
        return self._executor.held

    def state_memory(self, shapes: Mapping[str, Sequence[int]], tokens: int | None) -> StateMemory:
        """Memory for :meth:`run_in_place`: for those of the states of :attr:`held` that have a shape, while empty."""
        return self._executor.state_memory(shapes, tokens)

    def run_in_place(
        self, inputs: Mapping[str, Any], memory: StateMemory, *, last: int | None = None
    ) -> dict[str, Any]:
        """Like :meth:`run`, with the states of :attr:`held` in ``memory``, which are neither inputs nor outputs then;
        see :meth:`session`. Raises MoecError where they outgrow the system's memory."""
        return self._executor.run_in_place(inputs, memory, last)

    def __call__(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        """Like :meth:`run`, with inputs by position, by name, or both."""
        return self.run(bound_inputs([spec.name for spec in self.inputs], arguments, named))

    @property
    def artifact(self) -> Artifact:
        """The artifact that it was loaded from."""
        return self._artifact

    def session(self, max_tokens: int | None = None, batch: int = 1) -> Session:
        """A :class:`moec.Session` of a language model: each run goes on from the tokens before.

        ``max_tokens``: the most that it will hold, None where nothing has to limit them. ``batch``: sequences side by
        side. Raises InputError for a model without token ids or logits, or with states of a size that nothing tells.
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
        """The seconds of one run, without its inputs' way to a GPU and its outputs' way back."""
        return self._executor.time_run(inputs)

    def shapes_of_calls(self, inputs: Mapping[str, Any]) -> list[tuple[str, list[tuple[int, ...]]]]:
        """Run once and return the (name, shapes of its tensors) of every kernel call in order."""
        return self._executor.shapes_of_calls(inputs)

    @property
    def crossovers(self) -> dict[str, int]:
        """For kernels with two ways to compute: the number of rows from which on each takes the second, by shape. On a
        GPU they count tokens."""
        return {name: int(array.item()) for name, array in self._crossovers.items()}

    def set_crossovers(self, rows: Mapping[str, int]) -> None:
        """Change crossovers, in this model alone; names that it does not have are left out. See ``moec tune``."""
        self._write_crossovers(rows)
        self._executor.renew_numbers()

    def _write_crossovers(self, rows: Mapping[str, int]) -> None:
        for name in self._crossovers.keys() & rows.keys():
            self._crossovers[name][...] = rows[name]

    @property
    def target(self) -> str:
        """What it was compiled for, such as ``cpu`` or ``cpu:avx2``."""
        return self._artifact.manifest.target

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the artifact to a folder, or to one zip when the path ends in ``.zip``. Raises ArtifactError."""
        check_path("path", path)
        copy_artifact(self._artifact, path)

    def describe(self) -> dict[str, Any]:
        """Plain data about the model: target, inputs, outputs, MoE blocks, kernels, weights, passes, remarks."""
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
    """Load an artifact. ``threads``: None means as compiled, by default every available core.
    ``emulate``: run code for a GPU on the processor, slowly; needs g++. ``architecture``: which of several programs for
    GPUs to run (``sm_80``); by default the best for the GPU, or the newest where it is emulated.
    ``cuda_graphs``: from the second run with the same input sizes on, launch all kernels of a run at once, which is
    faster where there are few tokens; inputs and outputs are copied, and each set of sizes keeps its memory. Sessions
    that keep states in place gain nothing, for no two of their runs have the same sizes.
    ``check_weights=False`` skips the checksum of ``weights.bin``, which takes about a second per gigabyte. ``pages``:
    whether weights are ``mapped`` from their file or copied into ``huge`` pages, which are read faster where the system
    does not map files so; ``auto`` decides by their size, the free memory and what the system offers. ``streamed``
    keeps at most ``resident`` bytes of weights in memory (a number, or a text such as ``8GiB``; by default what the
    model was compiled with), and reads experts when they are chosen: ``auto`` for a model that was compiled so, and
    whose weights are more. ``prefer_resident``: an expert that was chosen, not first, and is not in memory gives way to
    one that is, if that loses at most this share of its weight (0.1: a tenth); results then depend on what ran before.

    Raises ArtifactError when the artifact is truncated, altered, of another format version or for another machine;
    MoecError for huge pages, a GPU or a compiler that cannot be had; UnsupportedError for graphs of a model that has
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
    """What :func:`load` does with an artifact that is open."""
    device = device_of(artifact, emulate=emulate, architecture=architecture)
    options: dict[str, Any] = {"device": device, "cuda_graphs": cuda_graphs}
    options |= {"resident": resident, "prefer_resident": prefer_resident}
    return CompiledModel(artifact, threads=threads, pages=pages, **options)
