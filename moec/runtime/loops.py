"""Loops that a program's host code takes step by step.

A loop's body is a function of the program. The program names two functions of this module, which are the same for all
programs of a process; :mod:`moec.runtime.program_run` says whose bodies they call.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from moec.common.errors import InputError
from moec.common.loop_steps import MAXIMUM_STEPS, LoopLimit
from moec.common.once import once
from moec.runtime.ended_loop import EndedLoop, Slices
from moec.runtime.library import load_ffi
from moec.runtime.program_run import ProgramRun, current_run
from moec.runtime.tensors import from_runtime, to_runtime

LOOP = "moec.loop"
"""``(number, states, asks, count, *places, trips, going, *values, found int64 [2 + count])``: calls the body
``loop_<number>`` with the number of the step, ``going`` and the values, of which the first ``states`` are replaced by
its results after each step. ``trips`` int64 [1]: after so many steps it ends; ``going`` bool [1]: whether there is a
first one. ``asks``: 1 where the first result says whether it goes on. ``places``: ``count`` pairs of a result and an
axis of it, or of its slices. ``found`` becomes what :data:`LOOP_RESULT` takes, the number of steps, and the sizes at
the places."""
LOOP_RESULT = "moec.loop_result"
"""``(result, axis, is_backward, found, y)``: writes a state behind the last step to y, or the slices of all steps side
by side along an axis."""


def body_name(number: int) -> str:
    """The name of the function that a loop's body is."""
    return f"loop_{number}"


@once
def register_loops() -> None:
    """Let programs find the functions."""
    ffi = load_ffi()
    ffi.register_global_func(LOOP, _loop)
    ffi.register_global_func(LOOP_RESULT, _result)


def _loop(number: int, states: int, asks: int, count: int, *rest: Any) -> None:
    places = [(rest[at], rest[at + 1]) for at in range(0, 2 * count, 2)]
    trips, going, *values, report = rest[2 * count :]
    run = current_run()
    try:
        growing = sorted({result for result, _ in places if result < states})
        body = _Body(run, body_name(number), states, growing, bool(asks), values[states:])
        taken, steps = body.run(values[:states], from_runtime(trips).item(), going)
        likes = [kept.first for kept in taken.slices] if steps else body.likes(values[:states], going) if places else []
        likes = [*taken.states, *likes]
    except BaseException as error:
        run.keep_error(error)
        raise
    run.loops.append(taken)
    sizes = (likes[result].shape[axis] if result < len(likes) else 0 for result, axis in places)
    from_runtime(report)[:] = [len(run.loops) - 1, steps, *sizes]


@dataclasses.dataclass(frozen=True)
class _Body:
    """The body of a loop, and what all its steps read. ``growing``: the states that may change their sizes."""

    program_run: ProgramRun
    name: str
    states: int
    growing: Sequence[int]
    asks: bool
    others: Sequence[Any]

    def run(self, carried: Sequence[Any], trips: int, going: Any) -> tuple[EndedLoop, int]:
        """The loop behind its last step, and how many it took."""
        body = self.program_run.machine.get_function(self.name)
        number = to_runtime(np.zeros((), np.int64))
        written, step = from_runtime(number), 0
        slices: list[Slices] = []
        is_counted = not self.asks and trips <= MAXIMUM_STEPS
        before = len(self.program_run.loops)
        limit = LoopLimit(self._growing(carried))
        goes_on = bool(from_runtime(going).item())
        while step < trips and goes_on:
            try:
                limit.step(self._growing(carried), 0 if is_counted else sum(kept.bytes for kept in slices))
            except ValueError as error:
                raise InputError(str(error)) from None
            written[...] = step
            results = list(body(number, going, *carried, *self.others))
            del self.program_run.loops[before:]  # those inside the body
            if self.asks:
                going, *results = results
                goes_on = bool(from_runtime(going).item())
            carried, slices_made = results[: self.states], results[self.states :]
            slices = slices or [Slices(trips if is_counted else None) for _ in slices_made]
            for kept, result in zip(slices, slices_made, strict=True):
                kept.add(from_runtime(result))
            step += 1
        if not step:  # what the program gave lies in memory that it may write results to
            carried = [to_runtime(from_runtime(tensor).copy()) for tensor in carried]
        return EndedLoop(carried, slices), step

    def _growing(self, carried: Sequence[Any]) -> int:
        """The bytes of the states that may grow."""
        tensors = [carried[at] for at in self.growing]
        return sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors)

    def likes(self, carried: Sequence[Any], going: Any) -> Sequence[np.ndarray]:
        """The slices that a first step would make, for their sizes; none where the body cannot run on what there
        is."""
        body, before = self.program_run.machine.get_function(self.name), len(self.program_run.loops)
        results: list[Any] = []
        with contextlib.suppress(Exception):
            results = list(body(to_runtime(np.zeros((), np.int64)), going, *carried, *self.others))
        del self.program_run.loops[before:]
        self.program_run.error = None
        return [from_runtime(result) for result in results[int(self.asks) + self.states :]]


def _result(result: int, axis: int, is_backward: int, report: Any, y: Any) -> None:
    number, steps, *_ = from_runtime(report).tolist()
    taken, written = current_run().loops[number], from_runtime(y)
    place = result - len(taken.states)
    if place < 0:
        written[...] = from_runtime(taken.states[result])
    elif steps:
        taken.slices[place].write(axis, bool(is_backward), written)
