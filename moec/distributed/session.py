"""Sessions in lockstep with those of other ranks."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from moec.distributed.pair import ProgramPair
from moec.runtime.device_results import Ending
from moec.runtime.interface import Interface
from moec.runtime.ranks import LEAST_OF_HALF
from moec.runtime.session import Session
from moec.runtime.session_states import Runner


class RankedSession(Session):
    """A session of a rank, on its program or on the stages of a pipeline (``runner``).

    Many tokens of a program are two runs in turn, the second half continuing behind the first: when it comes to a
    layer, the first half has written its states of that layer.

    ``second_idle_run``: runs the second program of the ``pair`` on a dummy input, beside a run of this session."""

    def __init__(
        self,
        interface: Interface,
        runner: Runner,
        pair: ProgramPair,
        second_idle_run: Callable[[], Any],
        max_tokens: int | None,
        batch: int,
    ) -> None:
        super().__init__(interface, runner, max_tokens, batch)
        self._pair, self._second_idle_run = pair, second_idle_run

    def _outputs(self, ids: np.ndarray, inputs: Mapping[str, Any], count: int, ending: Ending | None = None) -> Any:
        own = 2 if self._is_worth_halves(ids, inputs, count) else 1
        run = super()._outputs
        if self._pair.exchange.agreed(own) == 1:
            return self._pair.whole(lambda: run(ids, inputs, count, ending), ids.size)
        if own == 1:
            return self._pair.in_turn(lambda: run(ids, inputs, count, ending), self._second_idle_run)[0]
        return self._run_halves(ids, count, ending)

    def _run_halves(self, ids: np.ndarray, count: int, ending: Ending | None) -> Any:
        first, second = np.split(ids, [ids.shape[1] // 2], axis=1)
        memory = self._states.memory
        assert memory is not None, "is worth halves"
        memory.reserve(ids.shape[1])
        lengths = memory.lengths
        before, behind = copy.copy(self), copy.copy(self)
        behind._mask = np.concatenate([self._mask, np.ones(first.shape, bool)], axis=1)
        behind._states = dataclasses.replace(self._states, executor=self._pair.second)
        try:
            _, outputs = self._pair.in_turn(
                lambda: Session._outputs(before, first, {}, 0),
                lambda: Session._outputs(behind, second, {}, count, ending),
            )
        except BaseException:
            memory.lengths = lengths
            raise
        self._mask, self._seen = behind._mask, np.concatenate([self._seen, ids], axis=1)
        return outputs

    def _is_worth_halves(self, ids: np.ndarray, inputs: Mapping[str, Any], count: int) -> bool:
        """Whether two halves of the tokens may run in turn, and it pays. States have to be in place, with an entry for
        each token."""
        half = ids.shape[1] // 2
        states = self._states
        return (
            self._pair.pays
            and states.executor is self._pair.first
            and half * self.batch >= LEAST_OF_HALF
            and count <= half
            and not inputs
            and self.fixed_length is None
            and states.memory is not None
            and not states.arrays
            and all(state.has_room or state.growth == self._roles.ids.shape[1] for state in self._pair.first.held)
        )
