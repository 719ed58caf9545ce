"""Description of a kernel: its formula, the problems it can do and how, and the function that builds it.

A kernel is described in the file that builds it. An operator has a tuple of kernels in order of preference and takes
the first that can do the problem. To add a kernel, write a file and put one entry before the kernels that it outdoes.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax, tirx

from moec.common.errors import UnsupportedError
from moec.common.work import SizedWork, WorkModel
from moec.targets.base import Candidate

STORAGE_TYPES = ("float32", "float16", "bfloat16")
"""Element types that kernels load and store; they compute in float32."""
MOST_BUILT = 64
"""Most functions of one kernel that are kept for problems that come again."""


def never(problem: Any, machine: Any) -> None:
    """No reason against any problem."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel of an operator.

    ``computes``: the formula, in one line. ``build`` makes the function; all kernels that an operator selects from take
    the same arguments. ``how`` says in words how a problem is done, and ``why_not`` why it cannot be (None where it
    can); both depend on the problem and the machine alone. ``tile``: the tile of a block of threads, in words.

    ``build`` is called once for equal arguments, because parsing a script takes longer than everything else about a
    node."""

    name: str
    computes: str
    build: Callable[..., tirx.PrimFunc]
    how: Callable[[Any, Any], str]
    why_not: Callable[[Any, Any], str | None] = never
    tile: Callable[[Any], str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "build", built_once(self.build))

    @property
    def description(self) -> str:
        """The first paragraph of the docstring of the file that builds the kernel, in one line."""
        text = sys.modules[self.build.__module__].__doc__ or ""
        return " ".join(text.partition("\n\n")[0].replace("``", "").split())


def built_once(build: Callable[..., tirx.PrimFunc]) -> Callable[..., tirx.PrimFunc]:
    """``build`` with a cache for equal arguments; arguments without a hash are built anew each time."""
    remembered = functools.lru_cache(maxsize=MOST_BUILT, typed=True)(build)

    @functools.wraps(build)
    def built(*arguments: Any, **options: Any) -> tirx.PrimFunc:
        try:
            hash((arguments, tuple(options.values())))
        except TypeError:
            return build(*arguments, **options)
        return remembered(*arguments, **options)

    return built


@dataclasses.dataclass(frozen=True)
class Selection:
    """The kernel selected for a problem, and the verdicts on all kernels considered."""

    kernel: Kernel
    candidates: list[Candidate]
    problem: Any

    def tile_of(self, problem: Any) -> dict[str, str]:
        """Attribute of the artifact that describes the kernel's tile; empty where it has none."""
        return {} if self.kernel.tile is None else {"tile": self.kernel.tile(problem)}


@dataclasses.dataclass(frozen=True)
class KernelCall:
    """A call of the kernel that was selected: its function and arguments, and facts for the artifact.

    ``attributes``: in words and numbers; ``crossovers``: their names; ``requires``: CPU features beyond those of any
    code for the target."""

    chosen: Selection
    function: tirx.PrimFunc
    arguments: Sequence[relax.Expr]
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    crossovers: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    work: WorkModel | None = None
    sized_work: SizedWork | None = None


def select(kernels: Sequence[Kernel], problem: Any, machine: Any) -> Selection:
    """The first kernel that can do the problem: ``kernels`` is in order of preference.

    Raises UnsupportedError giving every kernel's reason if none can.
    """
    reasons = [kernel.why_not(problem, machine) for kernel in kernels]
    winner = next((kernel for kernel, reason in zip(kernels, reasons, strict=True) if reason is None), None)
    if winner is None:
        refusals = "; ".join(f"{kernel.name}: {reason}" for kernel, reason in zip(kernels, reasons, strict=True))
        raise UnsupportedError(f"no kernel can compute it: {refusals}")
    candidates = []
    for kernel, reason in zip(kernels, reasons, strict=True):
        words = kernel.how(problem, machine) if reason is None else reason
        beaten = reason is None and kernel is not winner
        words = f"{words}; {winner.name} is preferred" if beaten else words
        candidates.append(Candidate(kernel.name, reason is None, words, kernel is winner))
    return Selection(winner, candidates, problem)


def why_not_stored(*dtypes: str) -> str | None:
    """The reason why kernels cannot load or store tensors of these types, or None."""
    for dtype in dtypes:
        if dtype not in STORAGE_TYPES:
            return f"element type {dtype}; the kernel takes {', '.join(STORAGE_TYPES)}"
    return None


def in_storage(how: str, dtype: str, *, sums: bool = True) -> str:
    """``how`` extended by the element type in memory and, if the kernel has ``sums``, that of its sums."""
    return f"{how}; {dtype} in memory{', float32 sums' if sums else ''}"
