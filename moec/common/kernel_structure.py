"""Structure of a generated kernel, for people who read it: lines that belong together, loops and buffers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Literal

from moec.common.records import Size

LoopKind = Literal["serial", "parallel", "vectorized", "unrolled", "gpu thread"]


@dataclasses.dataclass(frozen=True)
class LineLinks:
    """The lines, from 1, of the text ``form`` that a text's lines come from, 0 for an empty line: in ``runs``, each a
    number and how many lines in order have it."""

    form: str
    runs: tuple[tuple[Size, ...], ...]

    @staticmethod
    def of(form: str, numbers: Iterable[int]) -> LineLinks:
        return LineLinks(form, tuple((number, len(list(lines))) for number, lines in itertools.groupby(numbers)))

    @property
    def numbers(self) -> list[int]:
        """The number of each line."""
        return [run[0] for run in self.runs for _ in range(*run[1:])]


@dataclasses.dataclass(frozen=True)
class LoopLevel:
    """A loop, or a range of a GPU's threads. Counts are of all its iterations together, as C expressions of sizes and
    of variables in it; of two branches the greater count.

    ``inside``: position of the enclosing loop in the list, -1 for none. ``line``: in the text of TIR, from 1.
    ``extent``: the number of iterations, empty for a loop that runs until a condition holds, whose counts are of one
    iteration. Bytes are those of the kernel's tensors; ``operations`` are those of values, not of indices.
    """

    inside: int
    variable: str
    kind: LoopKind
    line: Size
    extent: str
    bytes_read: str
    bytes_written: str
    operations: str


@dataclasses.dataclass(frozen=True)
class KernelBuffer:
    """A buffer of a kernel. ``scope``: ``parameter``, ``global``, ``local``, ``shared`` or a scope of TVM's. ``shape``
    and ``bytes`` are C expressions of sizes."""

    name: str
    scope: str
    shape: tuple[str, ...]
    dtype: str
    bytes: str


@dataclasses.dataclass(frozen=True)
class KernelStructure:
    """The structure of a kernel. ``links``: by form, those of each text except the coarsest."""

    links: dict[str, LineLinks]
    loops: tuple[LoopLevel, ...]
    buffers: tuple[KernelBuffer, ...]
