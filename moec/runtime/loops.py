"""Loops that a program's host code takes step by step.

A loop's body is a function of the program. The program names two functions of this module, which are the same for all
programs of a process: whose bodies they call is said by the thread that runs one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from moec.common.loop_steps import check_steps
from moec.common.once import once
from moec.errors import InputError
from moec.runtime.library import load_ffi
from moec.runtime.tensors import from_runtime, to_runtime

LOOP = "moec.loop"
"""``(number, states, asks, count, *places, trips, going, *values, found int64 [2 + count])``: calls the body
``loop_<number>`` with the number of the step, ``going`` and the values, of which the first ``states`` are replaced by
its results after each step. ``trips`` int64 [1]: after so many steps it ends; ``going`` bool [1]: whether there is a
first one. ``asks``: 1 where the first result says whether it goes on. ``places`` are ``count`` pairs of a result and an
axis of its slices. ``found`` becomes what :data:`LOOP_RESULT` takes, the number of steps, and the sizes at the
places."""
LOOP_RESULT = "moec.loop_result"
"""``(result, axis, is_backward, found, y)``: writes a state behind the last step to y, or the slices of all steps side
by side along an axis."""

_running = threading.local()


def body_name(number: int) -> str:
    """The name of the function that a loop's body is."""
    return f"loop_{number}"


@dataclasses.dataclass(frozen=True)
class _Taken:
    """A loop that has ended: its states, and the slices of each result."""

    states: Sequence[Any]
    slices: Sequence[Sequence[np.ndarray]]


class _Loops:
    """The loops of one run of a program that have ended, by a number."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine
        self.error: BaseException | None = None
        self._taken: dict[int, _Taken] = {}
        self._numbers = itertools.count()

    def keep(self, taken: _Taken) -> int:
        number = next(self._numbers)
        self._taken[number] = taken
        return number

    def __getitem__(self, number: int) -> _Taken:
        return self._taken[number]

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Behind it, loops that ended inside are forgotten."""
        before = dict(self._taken)
        yield
        self._taken = before


@contextlib.contextmanager
def stepping(machine: Any) -> Iterator[None]:
    """Inside, loops of the calling thread call functions of this virtual machine."""
    before, loops = getattr(_running, "loops", None), _Loops(machine)
    _running.loops = loops
    try:
        yield
    except Exception:
        if loops.error is not None:  # the runtime makes an error of its own of it
            raise loops.error from None
        raise
    finally:
        _running.loops = before


@once
def register_loops() -> None:
    """Let programs find the functions."""
    ffi = load_ffi()
    ffi.register_global_func(LOOP, _loop)
    ffi.register_global_func(LOOP_RESULT, _result)


def _loop(number: int, states: int, asks: int, count: int, *rest: Any) -> None:
    places = [(rest[at], rest[at + 1]) for at in range(0, 2 * count, 2)]
    trips, going, *values, found = rest[2 * count :]
    loops: _Loops = _running.loops
    try:
        taken, steps = _run(loops, body_name(number), states, asks, from_runtime(trips).item(), going, values)
    except BaseException as error:  # an interruption, too
        loops.error = loops.error or error
        raise
    sizes = (taken.slices[result - states][0].shape[axis] if steps else 0 for result, axis in places)
    from_runtime(found)[:] = [loops.keep(taken), steps, *sizes]


def _run(
    loops: _Loops, name: str, states: int, asks: int, trips: int, going: Any, values: Sequence[Any]
) -> tuple[_Taken, int]:
    """The loop behind its last step, and how many it took."""
    body = loops.machine.get_function(name)
    carried, others = list(values[:states]), values[states:]
    number = to_runtime(np.zeros(1, np.int64)[0:1].reshape(()))
    written, step = from_runtime(number), 0
    slices: list[list[np.ndarray]] = []
    while step < trips and from_runtime(going).item():
        try:
            check_steps(step + 1)
        except ValueError as error:
            raise InputError(str(error)) from None
        written[...] = step
        with loops.step():
            results = list(body(number, going, *carried, *others))
        if asks:
            going, *results = results
        carried, made = results[:states], results[states:]
        slices = slices or [[] for _ in made]
        for kept, result in zip(slices, made, strict=True):
            kept.append(from_runtime(result).copy())
        step += 1
    return _Taken(carried, slices), step


def _result(result: int, axis: int, is_backward: int, found: Any, y: Any) -> None:
    loops: _Loops = _running.loops
    number, steps, *_ = from_runtime(found).tolist()
    taken, written = loops[number], from_runtime(y)
    place = result - len(taken.states)
    if place < 0:
        written[...] = from_runtime(taken.states[result])
    elif steps:
        try:
            np.stack(taken.slices[place][:: -1 if is_backward else 1], axis, out=written)
        except ValueError as error:
            sizes = sorted({one.shape for one in taken.slices[place]})
            loops.error = InputError(f"the steps of a loop make slices of sizes {sizes}; expected equal sizes")
            raise loops.error from error
