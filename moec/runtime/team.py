"""The workers that share the parallel loops of programs with the thread that runs them. How they take their parts is
code of the program: ``targets/tvm/team.ll``."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import threading
from collections.abc import Iterator

import numpy as np

from moec.errors import MoecError
from moec.runtime.library import load_objects

TEAM_OBJECT = "team.o"
"""The object file of an artifact that holds the code of teams."""
_LINE = 64
_TICKET, _SPINS, _PARTS, _CLOCKED, _IN_LOOPS, _AT_PARTS, _BYTES = 0, 256, 260, 268, 320, 384, 448
_LOOKS = 20_000
"""How often a worker looks for work before it sleeps: about half a millisecond, the time between two steps."""
_PARTS_PER_THREAD = 4
"""A loop is cut into so many parts for each thread, so that all end at the same time though one may begin late."""


@dataclasses.dataclass
class LoopTimes:
    """Seconds in which a team ran loops, and those in which a thread was at a part of one, on average over threads.
    Between the two lies what threads wait for each other at the ends of loops."""

    in_loops: float = 0.0
    at_parts: float = 0.0


class Team:
    """``count`` threads, the one that runs programs included. It lives as long as the process."""

    def __init__(self, count: int, code: pathlib.Path) -> None:
        """``code``: the object file. Raises MoecError where the system allows no more threads, ArtifactError for code
        that does not link."""
        self.count = count
        memory = np.zeros(_BYTES + _LINE, np.uint8)
        start = -memory.ctypes.data % _LINE
        self._memory = memory[start : start + _BYTES]
        self._memory[_SPINS : _SPINS + 4].view(np.uint32)[0] = _LOOKS
        self._memory[_PARTS : _PARTS + 4].view(np.uint32)[0] = count * _PARTS_PER_THREAD
        self.address = int(self._memory.ctypes.data)
        self._module = load_objects([code], str(code))
        work = self._module.get_function("moec_work_in_team")
        try:
            for number in range(1, count):
                name = f"moec-{count}-{number}"
                threading.Thread(target=work, args=(self.address,), name=name, daemon=True).start()
        except RuntimeError as error:
            raise MoecError(f"{count} threads cannot be started: use threads=1") from error

    @contextlib.contextmanager
    def clocked(self) -> Iterator[LoopTimes]:
        """What the team does inside; known at the end."""
        times, sums = LoopTimes(), [self._memory[at : at + 8].view(np.int64) for at in (_IN_LOOPS, _AT_PARTS)]
        clocked = self._memory[_CLOCKED : _CLOCKED + 4].view(np.uint32)
        before = [int(one[0]) for one in sums]
        clocked[0] = 1
        try:
            yield times
        finally:
            clocked[0] = 0
            in_loops, at_parts = (int(one[0]) - start for one, start in zip(sums, before, strict=True))
            times.in_loops, times.at_parts = in_loops / 1e9, at_parts / 1e9 / self.count
