"""Workers that share the parallel loops of programs with the thread that runs them. The code by which they take their
parts belongs to the program: ``targets/tvm/team.ll``."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import threading
from collections.abc import Iterator

import numpy as np

from moec.common.errors import MoecError
from moec.runtime.library import load_objects

TEAM_OBJECT = "team.o"
"""Object file of an artifact with the code of teams."""
_LINE = 64
_TICKET, _SPINS, _PARTS, _CLOCKED, _IN_LOOPS, _AT_PARTS, _BYTES = 0, 256, 260, 268, 320, 384, 448
_LOOKS = 20_000
"""Times that a worker polls for work before it sleeps: about half a millisecond, the time between two steps."""
_PARTS_PER_THREAD = 4
"""Parts of a loop for each thread. With several, all threads end at the same time even if one begins late."""


@dataclasses.dataclass
class LoopTimes:
    """Seconds in which a team ran loops, and those in which a thread worked on a part of one, averaged over threads.
    The difference is time in which threads wait for each other at the ends of loops."""

    in_loops: float = 0.0
    at_parts: float = 0.0


class Team:
    """``count`` threads, including the one that runs programs, for the life of the process."""

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
        """Context that measures the team; the times are set at its end."""
        times, sums = LoopTimes(), [self._memory[at : at + 8].view(np.int64) for at in (_IN_LOOPS, _AT_PARTS)]
        clocked = self._memory[_CLOCKED : _CLOCKED + 4].view(np.uint32)
        before = [int(total[0]) for total in sums]
        clocked[0] = 1
        try:
            yield times
        finally:
            clocked[0] = 0
            in_loops, at_parts = (int(total[0]) - start for total, start in zip(sums, before, strict=True))
            times.in_loops, times.at_parts = in_loops / 1e9, at_parts / 1e9 / self.count
