"""A placed artifact as one model on several ranks: each rank computes its sequences and holds its experts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from moec.common.specs import TensorSpec
from moec.distributed.exchange import RowExchange
from moec.distributed.group import RankGroup
from moec.distributed.lockstep import Lockstep
from moec.runtime.artifact import Artifact
from moec.runtime.load_options import LoadOptions
from moec.runtime.model import CompiledModel
from moec.runtime.roles import roles_of


class RankedModel(CompiledModel):
    """A model whose runs are one run on all ranks.

    :meth:`run` takes all inputs on every rank and returns all outputs on every rank; a rank computes a part of the
    sequences. Sessions are a rank's own: they run inside of :meth:`apart`.
    """

    def __init__(self, artifact: Artifact, options: LoadOptions, group: RankGroup, exchange: RowExchange) -> None:
        super().__init__(artifact, options)
        self.group, self.exchange = group, exchange
        self._roles = None if artifact.manifest.sequences is None else roles_of(self.interface)
        self._executor.exchange_rows(exchange)

    def reloaded(self) -> CompiledModel:
        return RankedModel(self.artifact, self._options, self.group, self.exchange)

    def run(self, inputs: Mapping[str, Any], *, last: int | None = None) -> dict[str, Any]:
        """Run as :meth:`moec.CompiledModel.run`, with the same inputs on all ranks. A model without a size that counts
        sequences runs on rank 0, and other ranks compute their experts alone."""
        arrays = self._executor.checked(self._first_states.beside(inputs))
        count = self._sequences(arrays)
        rank, size = self.group.rank, self.group.size
        part = slice(-(-count * rank // size), -(-count * (rank + 1) // size))  # rank 0 has the only sequence
        is_idle = count > 0 and part.start == part.stop
        with self.exchange.idle() if is_idle else contextlib.nullcontext():
            outputs = super().run(self._part(arrays, slice(0, 1) if is_idle else part), last=last)
        if is_idle:
            outputs = self._part(outputs, slice(0, 0))
        return self._joined(self.group.gathered(outputs, "gathering of results"))

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Context in which ranks run sessions of their own; at its end a rank computes for the others until all are
        done."""

        def idle() -> None:
            session = self.session()
            session.run(np.zeros((1, session.fixed_length or 1), np.int64))

        with Lockstep(self.exchange, idle):
            yield

    def _sequences(self, arrays: Mapping[str, np.ndarray]) -> int:
        """Count the sequences of the inputs; 1 where they are not known."""
        return 1 if self._roles is None else len(arrays[self._roles.ids.name])

    def _axes(self, spec: TensorSpec) -> list[int]:
        """Find the axis of an input or output that counts sequences; a mask's may have a name of its own."""
        if self._roles is None:
            return []
        if spec.name in self._roles.filled and (len(spec.shape) > 1 or self._roles.filled[spec.name][0] != "positions"):
            return [0]
        return [axis for axis, own in enumerate(spec.shape) if own == self._roles.ids.shape[0]]

    def _part(self, arrays: Mapping[str, np.ndarray], part: slice) -> dict[str, np.ndarray]:
        """Take some of the sequences of inputs, or outputs. What has one part for all sequences is not split."""
        specs = {spec.name: spec for spec in (*self.inputs, *self.outputs)}
        result = dict(arrays)
        for name, array in arrays.items():
            for axis in self._axes(specs[name]):
                result[name] = np.ascontiguousarray(array[(slice(None),) * axis + (part,)])
        return result

    def _joined(self, parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Join the outputs of all ranks; those without sequences are rank 0's."""
        axes = {spec.name: self._axes(spec) for spec in self.outputs}
        return {
            name: np.concatenate([part[name] for part in parts], axes[name][0]) if axes[name] else value
            for name, value in parts[0].items()
        }
