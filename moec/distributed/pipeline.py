"""A pipeline by layers: each rank of a group runs one stage of an artifact and hands values on to the next rank.

All ranks of the group make the same calls with the same inputs. Stage s receives what it and later stages read of
earlier ones, from the rank before it: first the sizes, with a digest of the inputs, then the bytes of all values.
Outputs go from the stage that computes them to all ranks, so that every rank selects the same next token. Without
outputs (``last=0``: parts of a prompt) nobody waits, and the stages compute different parts at the same time.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from moec.common.errors import MoecError
from moec.common.specs import HeldState, TensorSpec
from moec.distributed.group import RankGroup
from moec.distributed.values import Values, bytes_in, packed, sizes_in, unpacked
from moec.runtime.artifact import Artifact
from moec.runtime.device import Device
from moec.runtime.device_results import Ending
from moec.runtime.executor import Executor
from moec.runtime.inputs import InputCheck
from moec.runtime.load_options import LoadOptions
from moec.runtime.manifest import Manifest
from moec.runtime.model import CompiledModel
from moec.runtime.session import Session
from moec.runtime.session_states import Runner
from moec.runtime.state_memory import StateMemory


class StageRunner:
    """The program of this rank's stage between those of the other ranks."""

    def __init__(self, own: Executor, group: RankGroup, manifest: Manifest) -> None:
        states = {name for state in manifest.states for name in (state.input, state.output)}
        self._own, self._group = own, group
        self._layer = manifest.pipeline[group.rank].first
        self._given = [spec.name for spec in manifest.inputs if spec.name not in states]
        self._received, self._sent = (crossing(manifest, stage) for stage in (group.rank, group.rank + 1))
        returned = {spec.name for spec in manifest.outputs}
        all_outputs = [[spec for spec in stage.outputs if spec.name in returned] for stage in manifest.pipeline]
        self._all_outputs = all_outputs
        self._outputs = [[spec for spec in specs if spec.name not in states] for specs in all_outputs]
        self._under_way: list[tuple[Any, np.ndarray]] = []

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """Inputs of this stage."""
        return self._own.inputs

    is_apart, sampler = False, ""  # outputs pass through the host

    @property
    def held(self) -> Sequence[HeldState]:
        return self._own.held

    def state_memory(self, shapes: Mapping[str, Sequence[int]], tokens: int | None) -> StateMemory:
        return self._own.state_memory(shapes, tokens)

    def run(self, values: Values, last: int | None = None, ending: Ending | None = None) -> dict[str, Any]:
        """Run all stages. Returns the outputs of the model except states of other stages; none of others for
        ``last=0``."""
        assert ending is None, "results are not on a device"
        outputs = self._through(values, lambda taken: self._own.run(taken, last))
        return outputs if last == 0 else outputs | self._shared(self._outputs, outputs)

    def run_in_place(
        self, values: Values, memory: StateMemory, last: int | None = None, ending: Ending | None = None
    ) -> dict[str, Any]:
        """Run as :meth:`run`, with the held states of this stage in ``memory``."""
        assert ending is None, "results are not on a device"
        outputs = self._through(values, lambda taken: self._own.run_in_place(taken, memory, last))
        return outputs if last == 0 else outputs | self._shared(self._outputs, outputs)

    def run_whole(self, values: Values, last: int | None = None) -> dict[str, Any]:
        """Run all stages. Returns all outputs, with the states of all stages."""
        outputs = self._through(values, lambda taken: self._own.run(taken, last))
        return self._shared(self._all_outputs, outputs)

    def _through(self, values: Values, run: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        digest = _digest_of(values, self._given)
        received = self._receive(digest) if self._received else {}
        own = {spec.name for spec in self._own.inputs}
        outputs = run({name: value for name, value in {**values, **received}.items() if name in own})
        if self._sent:
            self._send({**received, **outputs}, digest)
        return outputs

    def _receive(self, digest: int) -> dict[str, np.ndarray]:
        import torch
        from torch import distributed

        before, processes = self._group.rank - 1, self._group.processes
        header = np.empty(1 + sizes_in(self._received), np.int64)
        with self._group.collective("values of the stage before", self._layer):
            distributed.recv(torch.from_numpy(header), group=processes, group_src=before)
            if header[0] != digest:
                other = self._group.members[before]
                raise MoecError(f"rank {other} runs on other inputs; expected the same inputs on all ranks")
            message = np.empty(bytes_in(self._received, header[1:]), np.uint8)
            if message.size:
                distributed.recv(torch.from_numpy(message), group=processes, group_src=before)
        return unpacked(self._received, header[1:], message)

    def _send(self, values: Values, digest: int) -> None:
        """Begin to send, once the values of the run before have arrived."""
        import torch
        from torch import distributed

        sizes, message = packed(self._sent, values)
        with self._group.collective("values for the next stage", self._layer):
            for work, _ in self._under_way:
                work.wait()
            arrays = [np.concatenate([np.array([digest], np.int64), sizes]), *([message] if message.size else [])]
            after, processes = self._group.rank + 1, self._group.processes
            self._under_way = [
                (distributed.isend(torch.from_numpy(array), group=processes, group_dst=after), array)
                for array in arrays
            ]

    def _shared(self, outputs_of: Sequence[Sequence[TensorSpec]], own: Values) -> dict[str, Any]:
        """Collect outputs of all stages on all ranks. ``outputs_of``: those of each stage."""
        results: dict[str, Any] = {}
        with self._group.collective("outputs of the stages"):
            for stage, specs in enumerate(outputs_of):
                if specs:
                    results |= self._broadcast(specs, own if stage == self._group.rank else None, stage)
        return results

    def _broadcast(self, specs: Sequence[TensorSpec], own: Values | None, source: int) -> dict[str, Any]:
        import torch
        from torch import distributed

        sizes, message = packed(specs, own) if own is not None else (np.empty(sizes_in(specs), np.int64), None)
        distributed.broadcast(torch.from_numpy(sizes), group=self._group.processes, group_src=source)
        if message is None:
            message = np.empty(bytes_in(specs, sizes), np.uint8)
        if message.size:
            distributed.broadcast(torch.from_numpy(message), group=self._group.processes, group_src=source)
        return unpacked(specs, sizes, message) if own is None else {spec.name: own[spec.name] for spec in specs}


class PipelinedModel(CompiledModel):
    """A model of which each rank of a group runs one stage. All of them make the same calls, with the same inputs, and
    get the same results; a session has only the states of its rank's stage."""

    def __init__(
        self, artifact: Artifact, options: LoadOptions, through: RankGroup | None, device: Device | None = None
    ) -> None:
        """``through``: the ranks of all stages, in order; None for a model of one stage, the whole."""
        stage = None if through is None else through.rank
        super().__init__(artifact, dataclasses.replace(options, stage=stage), device)
        self.through = through
        self._stages = None if through is None else StageRunner(self._executor, through, artifact.manifest)
        self._runner: Runner = self._stages or self._executor
        self._check = InputCheck(self.inputs, guards=self.guards)

    def reloaded(self) -> CompiledModel:
        return PipelinedModel(self.artifact, self._options, self.through, self._device)

    def checked(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs of the whole model as arrays. Raises InputError as :meth:`run`."""
        arrays = self._check(self._first_states.beside(inputs))
        return {spec.name: array for spec, array in zip(self.inputs, arrays, strict=True)}

    def run(self, inputs: Mapping[str, Any], *, last: int | None = None) -> dict[str, Any]:
        """Run as :meth:`moec.CompiledModel.run`, with the same inputs on all ranks."""
        if self._stages is None:
            return super().run(inputs, last=last)
        results = self._stages.run_whole(self.checked(inputs), last)
        return {spec.name: results[spec.name] for spec in self.outputs}

    def _new_session(self, max_tokens: int | None, batch: int) -> Session:
        return Session(self.interface, self._runner, max_tokens, batch)


def crossing(manifest: Manifest, stage: int) -> list[TensorSpec]:
    """List the values that a stage receives from the one before it: computed by earlier stages, and read by this one or
    later ones."""
    read = {spec.name for later in manifest.pipeline[stage:] for spec in later.inputs}
    return [spec for earlier in manifest.pipeline[:stage] for spec in earlier.outputs if spec.name in read]


def _digest_of(values: Values, names: Sequence[str]) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for name in names:
        array = np.asarray(values[name])
        digest.update(repr((name, array.shape)).encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return int.from_bytes(digest.digest(), "little", signed=True)
