"""The numbers of tokens for which a way to compute is taken, between crossovers that the host's part reads.

Whatever the crossovers are, one way is taken: of ways in an order, with a crossover between neighbours, the first whose
next crossover the number of tokens does not reach.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from tvm import relax, tirx

from moec.targets.cuda.kernels.grouped_problem import GroupedProblem
from moec.targets.cuda.launch_conditions import launch_between
from moec.targets.tvm.crossover import Crossover
from moec.targets.tvm.heavy import LoweringContext


@dataclasses.dataclass(frozen=True)
class TokenRange:
    """Numbers of tokens: those that reach all of ``reached`` and none of ``missed``."""

    reached: tuple[Crossover, ...] = ()
    missed: tuple[Crossover, ...] = ()

    def reaching(self, crossover: Crossover) -> TokenRange:
        """Those of them that reach a crossover too."""
        return dataclasses.replace(self, reached=(*self.reached, crossover))

    def missing(self, crossover: Crossover) -> TokenRange:
        """The others."""
        return dataclasses.replace(self, missed=(*self.missed, crossover))

    @property
    def names(self) -> tuple[str, ...]:
        """The crossovers that limit it."""
        return tuple(crossover.name for crossover in (*self.reached, *self.missed))

    def numbers(self, lowering: LoweringContext) -> list[relax.Var]:
        """What a kernel that :meth:`limited` made takes before its own arguments."""
        return [_number(lowering, crossover) for crossover in (*self.reached, *self.missed)]

    def limited(self, kernel: tirx.PrimFunc, parameter: int) -> tirx.PrimFunc:
        """The kernel, launched where the first size of that parameter is one of these numbers."""
        return launch_between(kernel, parameter, self.reached, self.missed)

    def __str__(self) -> str:
        """As they are estimated."""
        least = max((crossover.estimate for crossover in self.reached), default=0)
        most = min((crossover.estimate - 1 for crossover in self.missed), default=None)
        if most is None:
            return f"from {least}"
        return f"{least} to {most}" if least else f"up to {most}"


def _number(lowering: LoweringContext, crossover: Crossover) -> relax.Var:
    return lowering.add_number(crossover.name, lambda: np.array(crossover.estimate, np.int32))


def ranges_between(crossovers: Sequence[Crossover]) -> list[TokenRange]:
    """The range of each way, where neighbours have these crossovers between them."""
    ways = range(len(crossovers) + 1)
    return [TokenRange(tuple(crossovers[:way]), tuple(crossovers[way : way + 1])) for way in ways]


def crossover_to(way: str, shape: str, architecture: str, estimate: int, highest: int | None = None) -> Crossover:
    """The crossover to a way for what has this ``shape``, see :func:`shape_of`."""
    return Crossover(f"crossover.{architecture}.{shape}.{way}", "tokens", estimate, highest)


def shape_of(problems: Sequence[GroupedProblem], slots: int | None) -> str:
    """What decides the times of products of ``slots`` experts per token, None where that is dynamic."""
    kinds, sizes = [_kind(problem) for problem in problems], [_sizes(problem) for problem in problems]
    if len(set(kinds)) == 1:
        return f"{kinds[0]}.{'+'.join(sizes)}.{per_token(slots)}"
    products = (f"{kind}.{size}" for kind, size in zip(kinds, sizes, strict=True))
    return f"{'+'.join(products)}.{per_token(slots)}"


def per_token(slots: int | None) -> str:
    """How many experts a token has, None where that is dynamic, as a part of a name."""
    return f"top{'k' if slots is None else slots}"


def _kind(problem: GroupedProblem) -> str:
    """How rows and matrix are stored and multiplied."""
    stored = problem.stored
    matrix = problem.matrix_dtype if stored is None else f"{stored.element}/{stored.group}"
    rows = "tf32" if problem.tf32 else problem.dtype
    return rows if matrix == problem.dtype else f"{rows}*{matrix}"


def _sizes(problem: GroupedProblem) -> str:
    return f"{problem.experts}x{problem.inner}x{problem.width}{'x2' if problem.gated else ''}"
