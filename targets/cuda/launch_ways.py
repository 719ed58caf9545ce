"""Several ways to compute one result, of which the host takes one by a size that it knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tvm import relax, tirx

from moec.targets.base import KernelRecord
from moec.targets.cuda.launch_conditions import NO_LIMIT, launch_if
from moec.targets.tvm.heavy import LoweringContext
from moec.targets.tvm.nodes import static_size


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes from ``least`` to ``most``."""

    least: int = 0
    most: int = NO_LIMIT

    def __str__(self) -> str:
        return f"from {self.least}" if self.most == NO_LIMIT else f"{self.least} to {self.most}"

    def hold(self, size: int | None) -> bool:
        """Whether the size may be one of them; None where it is not known now."""
        return size is None or self.least <= size <= self.most


@dataclasses.dataclass(frozen=True)
class Way:
    """A kernel, and the sizes for which it is launched."""

    kernel: tirx.PrimFunc
    record: KernelRecord
    sizes: Sizes


def call_ways(
    lowering: LoweringContext,
    ways: Sequence[Way],
    axis: int,
    arguments: Sequence[relax.Expr],
    output: relax.TensorType,
) -> relax.Var:
    """The result of the way that is for the size of the first argument's ``axis``; some way has to be. Ways that are
    for no size there can be are left out now."""
    size = static_size(arguments[0].ty.shape[axis])
    result: relax.Var | None = None
    for way in ways:
        if not way.sizes.hold(size):
            continue
        kernel = launch_if(way.kernel, 0, axis, least=way.sizes.least, most=way.sizes.most)
        if result is None:
            (result,) = lowering.call_kernel(kernel, arguments, [output], way.record)
        else:
            result = lowering.call_kernel_on(kernel, arguments, result, way.record)
    assert result is not None, "some way is for every size"
    return result
