"""Records of kernels that multiply tile by tile: one generator makes both a grouped product and a dense one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from tvm import tirx

from moec.targets.cuda.kernels.dense_problem import dense_kernel
from moec.targets.cuda.kernels.grouped_problem import GroupedProblem
from moec.targets.cuda.launch_model.plans import TilePlan
from moec.targets.tvm.kernel import Kernel

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
    plan: Callable[[GroupedProblem], TilePlan],
) -> tuple[Kernel, Kernel]:
    """The kernel for grouped products, selected for a :class:`GroupedProblem`, and the one for dense products, selected
    for a :class:`DenseLaunch`."""

    def tile_in_words(problem: GroupedProblem) -> str:
        tile = plan(problem)
        return f"{tile.rows} rows x {tile.columns} columns, {tile.inputs} inputs at a time"

    grouped = Kernel(
        f"grouped_{name}",
        GROUPED_FORMULA,
        build,
        how=lambda problem, _: f"{how(problem)}; blocks of {problem.block_rows} rows, grid from the upper bound",
        why_not=why_not,
        tile=tile_in_words,
        plan=plan,
    )
    dense = Kernel(
        name,
        DENSE_FORMULA,
        functools.partial(build, form=dense_kernel),
        how=lambda launch, _: f"{how(launch.problem)}; tiles of {launch.problem.block_rows} rows",
        why_not=lambda launch, architecture: why_not(launch.problem, architecture),
        tile=tile_in_words,
        plan=lambda launch: plan(launch.problem),
    )
    return grouped, dense
