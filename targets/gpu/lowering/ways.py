"""The ways to compute one result: a kernel each, of which the host launches the one for the size at hand.

Ways for a static range of sizes are called by :func:`call_ways`. The ways of a grouped product are ordered, with a
crossover between neighbours. The host reads the crossovers at each run and takes the first way whose next crossover the
number of tokens does not reach. So exactly one way is taken, whatever the values of the crossovers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from tvm import relax, tirx

from moec.common.work import SizedWork
from moec.targets.base import SizeRange
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.gpu.lowering.launch_conditions import launch_between, launch_if
from moec.targets.tvm.kernels.crossover import Crossover
from moec.targets.tvm.kernels.kernel import KernelCall, Selection
from moec.targets.tvm.lowering.context import LoweringContext
from moec.targets.tvm.lowering.nodes import record_of
from moec.targets.tvm.sizes.shapes import static_size


@dataclasses.dataclass(frozen=True)
class LaunchChoice:
    """A kernel's function that computes the result for some ``sizes``. ``attributes``: recorded in the artifact."""

    chosen: Selection
    function: tirx.PrimFunc
    sizes: SizeRange
    attributes: dict[str, object]
    work: SizedWork


def call_ways(
    lowering: LoweringContext,
    node: ir.Node,
    ways: Sequence[LaunchChoice],
    axis: int,
    arguments: Sequence[relax.Expr],
    output: relax.TensorType,
    others: Sequence[relax.Var] = (),
) -> relax.Var:
    """Call all ways and return their common result; at run time only the one for the size of the first argument's
    ``axis`` is launched.

    The ways have to cover every size. Ways that cannot occur, since the size is static, are left out. ``others``: the
    result, if a way that was emitted before already writes it.
    """
    size = static_size(arguments[0].ty.shape[axis])
    results = list(others)
    for way in ways:
        if not way.sizes.may_hold(size):
            continue
        function = launch_if(way.function, 0, axis, way.sizes)
        record = record_of(node, KernelCall(way.chosen, function, arguments, way.attributes, sized_work=way.work))
        if results:
            results = lowering.call_kernel_on(function, arguments, results, record)
        else:
            results = lowering.call_kernel(function, arguments, [output], record)
    (result,) = results
    return result


@dataclasses.dataclass(frozen=True)
class TokenRange:
    """The numbers of tokens that are at least each of ``reached`` and below each of ``missed``."""

    reached: tuple[Crossover, ...] = ()
    missed: tuple[Crossover, ...] = ()

    def reaching(self, crossover: Crossover) -> TokenRange:
        """The part of this range at and above a crossover."""
        return dataclasses.replace(self, reached=(*self.reached, crossover))

    def missing(self, crossover: Crossover) -> TokenRange:
        """The part of this range below a crossover."""
        return dataclasses.replace(self, missed=(*self.missed, crossover))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the crossovers that bound the range."""
        return tuple(crossover.name for crossover in (*self.reached, *self.missed))

    def numbers(self, lowering: LoweringContext) -> list[relax.Var]:
        """The crossovers as arguments, which a kernel made by :meth:`limited` takes before its own."""
        return [_number(lowering, crossover) for crossover in (*self.reached, *self.missed)]

    def limited(self, kernel: tirx.PrimFunc, parameter: int) -> tirx.PrimFunc:
        """The kernel, launched only if the first size of the parameter with that index lies in this range."""
        return launch_between(kernel, parameter, self.reached, self.missed)

    def __str__(self) -> str:
        """The range in words, with the estimated crossovers."""
        least = max((crossover.estimate for crossover in self.reached), default=0)
        most = min((crossover.estimate - 1 for crossover in self.missed), default=None)
        if most is None:
            return f"from {least}"
        return f"{least} to {most}" if least else f"up to {most}"


def _number(lowering: LoweringContext, crossover: Crossover) -> relax.Var:
    return lowering.add_number(crossover.name, lambda: np.array(crossover.estimate, np.int32))


def ranges_between(crossovers: Sequence[Crossover]) -> list[TokenRange]:
    """The range of each way, in order; ``crossovers``: those between neighbouring ways."""
    ways = range(len(crossovers) + 1)
    return [TokenRange(tuple(crossovers[:way]), tuple(crossovers[way : way + 1])) for way in ways]


def crossover_to(way: str, shape: str, architecture: str, estimate: int, highest: int | None = None) -> Crossover:
    """The crossover to ``way`` for products of this ``shape`` (see :func:`shape_of`)."""
    return Crossover(f"crossover.{architecture}.{shape}.{way}", "tokens", estimate, highest)


def shape_of(problems: Sequence[GroupedProblem], slots: int | None) -> str:
    """The part of a crossover's name that identifies products: all that decides their times. ``slots``: experts per
    token, None if dynamic."""
    kinds, sizes = [_kind(problem) for problem in problems], [_sizes(problem) for problem in problems]
    if len(set(kinds)) == 1:
        return f"{kinds[0]}.{'+'.join(sizes)}.{per_token(slots)}"
    products = (f"{kind}.{size}" for kind, size in zip(kinds, sizes, strict=True))
    return f"{'+'.join(products)}.{per_token(slots)}"


def per_token(slots: int | None) -> str:
    """The number of experts per token as a part of a name: ``top2``, or ``topk`` if it is dynamic (None)."""
    return f"top{'k' if slots is None else slots}"


def _kind(problem: GroupedProblem) -> str:
    """The types of rows and matrix, as stored and multiplied: ``bfloat16``, ``float32*int4/32``."""
    stored = problem.stored
    matrix = problem.matrix_dtype if stored is None else f"{stored.element}/{stored.group}"
    rows = "tf32" if problem.tf32 else problem.dtype
    return rows if matrix == problem.dtype else f"{rows}*{matrix}"


def _sizes(problem: GroupedProblem) -> str:
    return f"{problem.experts}x{problem.inner}x{problem.width}{'x2' if problem.gated else ''}"
