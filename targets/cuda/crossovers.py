"""Where one way to compute gives way to the next, by the number of tokens: numbers that the host's part reads.

A crossover is a parameter of the program: the artifact holds an estimate, ``moec tune`` measures it on a GPU, and no
code changes. Whatever the numbers are, one way is taken: of ways in an order, with a crossover between neighbours, the
first whose next crossover the number of tokens does not reach.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from tvm import relax, tirx

from moec.runtime.tuning import CROSSOVER
from moec.targets.cuda.kernels.grouped_problem import GroupedProblem
from moec.targets.cuda.launch_conditions import NO_LIMIT, Bound, launch_between
from moec.targets.tvm.node_lowering import NodeLowering


@dataclasses.dataclass(frozen=True)
class Crossover:
    """From how many tokens on the next way is taken. ``number``: the program's parameter."""

    name: str
    number: relax.Var
    bound: Bound


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
    def numbers(self) -> list[relax.Var]:
        """What a kernel that :meth:`limited` made takes before its own arguments."""
        return [one.number for one in (*self.reached, *self.missed)]

    def limited(self, kernel: tirx.PrimFunc, parameter: int) -> tirx.PrimFunc:
        """The kernel, launched where the first size of that parameter is one of these numbers."""
        reached, missed = ([one.bound for one in bounds] for bounds in (self.reached, self.missed))
        return launch_between(kernel, parameter, 0, reached, missed)

    @property
    def attributes(self) -> dict[str, str | list[str]]:
        """What the artifact says about a kernel that runs for these numbers, as they are estimated."""
        least = max((one.bound.estimate for one in self.reached), default=0)
        most = min((one.bound.estimate - 1 for one in self.missed), default=NO_LIMIT)
        names = [one.name for one in (*self.reached, *self.missed)]
        limited = f"{least} to {most}" if least else f"up to {most}"
        tokens = f"from {least}" if most == NO_LIMIT else limited
        return {"tokens": tokens, "crossovers": names} if names else {"tokens": tokens}


def ranges_between(crossovers: Sequence[Crossover]) -> list[TokenRange]:
    """Of each way, where neighbours have these crossovers between them."""
    ways = range(len(crossovers) + 1)
    return [TokenRange(tuple(crossovers[:way]), tuple(crossovers[way : way + 1])) for way in ways]


def add_crossover(node: NodeLowering, shape: str, way: str, estimate: int, highest: int = NO_LIMIT) -> Crossover:
    """The crossover to a way; nodes of one ``shape`` share it. It counts as ``highest`` where it is higher."""
    name = f"{CROSSOVER}{node.machine}.{shape}.{way}"
    number = node.lowering.add_number(name, lambda: np.array(estimate, np.int32))
    return Crossover(name, number, Bound(estimate, highest))


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
