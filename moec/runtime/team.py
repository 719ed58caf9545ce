"""The workers that share the parallel loops of programs with the thread that runs them. How they take their parts is
code of the program: ``targets/tvm/team.ll``."""

from __future__ import annotations

import pathlib
import threading

import numpy as np

from moec.errors import MoecError
from moec.runtime.library import load_objects

TEAM_OBJECT = "team.o"
"""The object file of an artifact that holds the code of teams."""
_LINE = 64
_TICKET, _SPINS, _PARTS, _BYTES = 0, 256, 260, 320
_LOOKS = 20_000
"""How often a worker looks for work before it sleeps: about half a millisecond, the time between two steps."""
_PARTS_PER_THREAD = 4
"""A loop is cut into so many parts for each thread, so that all end at the same time though one may begin late."""


class Team:
    """``count`` threads, the one that runs programs included. It lives as long as the process."""

    def __init__(self, count: int, code: pathlib.Path) -> None:
        """``code``: the object file. Raises MoecError where the system allows no more threads, ArtifactError for code
        that does not link."""
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
