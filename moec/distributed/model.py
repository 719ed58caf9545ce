"""A placed artifact as one model on several ranks: each rank computes its sequences and holds its experts.

Where the model has stages, too, each stage has as many ranks. Ranks of one stage exchange rows; ranks with the same
number in their stages compute the same sequences, one after the other.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from moec.distributed.exchange import RowExchange
from moec.distributed.group import RankGroup
from moec.distributed.lockstep import Lockstep
from moec.distributed.pair import ProgramPair
from moec.distributed.pipeline import PipelinedModel
from moec.distributed.sequence_axes import SequenceAxes
from moec.distributed.session import RankedSession
from moec.distributed.values import gathered_values
from moec.runtime.artifact import Artifact
from moec.runtime.device import Device
from moec.runtime.load_options import LoadOptions
from moec.runtime.model import CompiledModel
from moec.runtime.ranks import LEAST_OF_HALF
from moec.runtime.roles import roles_of
from moec.runtime.session import Session
from moec.runtime.session_states import Runner


class RankedModel(PipelinedModel):
    """A model whose runs are one run on all ranks.

    :meth:`run` takes all inputs on every rank and returns all outputs on every rank; a rank computes a part of the
    sequences. Sessions are a rank's own: they run inside of :meth:`apart`.
    """

    def __init__(
        self,
        artifact: Artifact,
        options: LoadOptions,
        exchange: RowExchange,
        through: RankGroup | None = None,
        device: Device | None = None,
    ) -> None:
        """``exchange``: that of the ranks of this stage. ``through``: as of :class:`PipelinedModel`. ``device``: where
        it runs, with an exchange of its own; None for the processor."""
        super().__init__(artifact, dataclasses.replace(options, rank=exchange.group.rank), through, device)
        self.group, self.exchange = exchange.group, exchange
        self._roles = None if artifact.manifest.sequences is None else roles_of(self.interface)
        self._pair = ProgramPair(self._executor, exchange)

    def reloaded(self) -> CompiledModel:
        return RankedModel(self.artifact, self._options, self.exchange, self.through, self._device)

    def run(self, inputs: Mapping[str, Any], *, last: int | None = None) -> dict[str, Any]:
        """Run as :meth:`moec.CompiledModel.run`, with the same inputs on all ranks. A model without a size that counts
        sequences, or inputs of different numbers of them, run on rank 0, and other ranks compute their experts
        alone."""
        arrays = self.checked(inputs)
        axes = SequenceAxes.of(arrays, self._roles, (*self.inputs, *self.outputs))
        count = axes.count
        rank, size = self.group.rank, self.group.size
        part = slice(-(-count * rank // size), -(-count * (rank + 1) // size))  # rank 0 has the only sequence
        tokens = self._least_of_half(axes)
        if tokens >= LEAST_OF_HALF and self.group.most(self._pair.pays):
            outputs = self._run_halves(arrays, part, axes, last)
        else:
            outputs = self._pair.whole(lambda: self._run_part(arrays, part, axes, last), 2 * tokens)
        return axes.joined(gathered_values(self.group, self.outputs, outputs))

    def _new_session(self, max_tokens: int | None, batch: int) -> Session:
        return RankedSession(self.interface, self._runner, self._pair, self._second_idle_run, max_tokens, batch)

    @property
    def ranks(self) -> int:
        """Number of all ranks."""
        return self.group.size * (1 if self.through is None else self.through.size)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0 of all."""
        return self.group.rank == 0 and (self.through is None or self.through.rank == 0)

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Context in which ranks run sessions of their own; at its end a rank computes for the others until all are
        done."""
        with Lockstep(self.exchange, self._idle_run):
            yield

    def _idle_run(self, runs: int) -> None:
        if runs == 1:
            self._run_dummy(self._runner)
        else:
            self._pair.in_turn(lambda: self._run_dummy(self._pair.first), self._second_idle_run)

    def _second_idle_run(self) -> None:
        with self._pair.second_exchange.idle():
            self._run_dummy(self._pair.second)

    def _run_dummy(self, runner: Runner) -> None:
        session = Session(self.interface, runner)
        session.run(np.zeros((1, session.fixed_length or 1), np.int64))

    def _run_part(
        self, arrays: Mapping[str, np.ndarray], part: slice, axes: SequenceAxes, last: int | None
    ) -> dict[str, np.ndarray]:
        """Run a part of the sequences; an empty one is a run on the first sequence, of which nothing is sent."""
        if axes.count == 0 or part.start < part.stop:
            return super().run(axes.part(arrays, part), last=last)
        with self.exchange.idle():
            outputs = super().run(axes.part(arrays, slice(0, 1)), last=last)
        return axes.part(outputs, slice(0, 0))

    def _least_of_half(self, axes: SequenceAxes) -> int:
        """Count the tokens of the smallest half of a rank's sequences; 0 where they have no halves, as those of a stage
        of several. All ranks say the same."""
        return 0 if self.through is not None else axes.count // self.group.size // 2 * axes.tokens

    def _run_halves(
        self, arrays: Mapping[str, np.ndarray], part: slice, axes: SequenceAxes, last: int | None
    ) -> dict[str, np.ndarray]:
        middle = (part.start + part.stop) // 2
        first, second = (axes.part(arrays, own) for own in (slice(part.start, middle), slice(middle, part.stop)))
        outputs = self._pair.in_turn(
            lambda: self._pair.first.run(first, last), lambda: self._pair.second.run(second, last)
        )
        return axes.joined(outputs)
