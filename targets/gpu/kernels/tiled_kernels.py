"""Records of kernels that multiply tile by tile: one generator makes both a grouped product and a dense one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from tvm import tirx

from moec.targets.gpu.kernels.dense_problem import dense_kernel
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.tvm.kernels.kernel import Kernel

GROUPED_FORMULA = "out[r] = activation(rows[r] @ matrix[expert of r].T + bias)"
DENSE_FORMULA = "out[r] = activation(rows[r] @ matrix.T + bias)"


@dataclasses.dataclass(frozen=True)
class DenseLaunch:
    """A dense product for up to ``most`` rows; None for any number."""

    problem: GroupedProblem
    most: int | None


def tiled_kernels(
    name: str,
    build: Callable[..., tirx.PrimFunc],
    how: Callable[[GroupedProblem], str],
    why_not: Callable[[GroupedProblem, str], str | None],
    tile: Callable[[GroupedProblem], tuple[int, int, int]],
) -> tuple[Kernel, Kernel]:
    """The kernel for grouped products, selected for a :class:`GroupedProblem`, and the one for dense products, selected
    for a :class:`DenseLaunch`. ``tile``: rows, columns and inputs of a tile."""

    def tile_in_words(problem: GroupedProblem) -> str:
        rows, columns, inputs = tile(problem)
        return f"{rows} rows x {columns} columns, {inputs} inputs at a time"

    grouped = Kernel(
        f"grouped_{name}",
        GROUPED_FORMULA,
        build,
        how=lambda problem, _: f"{how(problem)}; blocks of {problem.block_rows} rows, grid from the upper bound",
        why_not=why_not,
        tile=tile_in_words,
    )
    dense = Kernel(
        name,
        DENSE_FORMULA,
        functools.partial(build, form=dense_kernel),
        how=lambda launch, _: f"{how(launch.problem)}; tiles of {launch.problem.block_rows} rows",
        why_not=lambda launch, architecture: why_not(launch.problem, architecture),
        tile=tile_in_words,
    )
    return grouped, dense
