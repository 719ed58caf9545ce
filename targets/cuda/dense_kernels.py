"""The kernels of dense products on a GPU as the selector sees them: what each computes, which problems it can do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from moec.targets.base import Eligibility
from moec.targets.cuda.kernels import gemv, grouped_gemm_mma, grouped_gemm_simt, grouped_gemm_wgmma
from moec.targets.cuda.kernels.grouped_problem import GroupedProblem
from moec.targets.tvm.selection import Kernel


@dataclasses.dataclass(frozen=True)
class DenseLaunch:
    """A dense product, for up to ``most`` rows."""

    problem: GroupedProblem
    most: int


def _can_use_gemv(launch: DenseLaunch, architecture: str) -> Eligibility:
    reason = gemv.why_not(launch.problem)
    if reason is None and launch.most > gemv.FEW_ROWS:
        reason = f"more than {gemv.FEW_ROWS} rows; every {gemv.ROWS_PER_WARP} of them read the matrix again"
    if reason is not None:
        return Eligibility(False, reason)
    return Eligibility(True, f"up to {gemv.FEW_ROWS} rows: a warp per outputs, which {gemv.ROWS_PER_WARP} rows share")


def _tiled(why_not: Callable[[GroupedProblem], str | None], how: str) -> Callable[[DenseLaunch, str], Eligibility]:
    def can(launch: DenseLaunch, architecture: str) -> Eligibility:
        reason = why_not(launch.problem)
        if reason is not None:
            return Eligibility(False, reason)
        return Eligibility(True, f"{how}; tiles of {launch.problem.block_rows} rows")

    return can


def _can_use_wgmma(launch: DenseLaunch, architecture: str) -> Eligibility:
    if architecture != "sm_90a":
        return Eligibility(False, f"the code is for {architecture}; wgmma needs sm_90a")
    return _tiled(grouped_gemm_wgmma.why_not, grouped_gemm_wgmma.way_of(launch.problem))(launch, architecture)


_FORMULA = "out[r] = activation(rows[r] @ matrix.T + bias)"
PRODUCTS = (
    Kernel("gemv", _FORMULA, _can_use_gemv),
    Kernel("gemm_wgmma", _FORMULA, _can_use_wgmma),
    Kernel(
        "gemm_mma",
        _FORMULA,
        _tiled(grouped_gemm_mma.why_not, "tensor cores (mma.sync), panels by cp.async in several stages"),
    ),
    Kernel(
        "gemm_simt",
        _FORMULA,
        _tiled(grouped_gemm_simt.why_not, "float32 multiply-adds, panels in shared memory, any size"),
    ),
)
TILED = {
    "gemm_wgmma": grouped_gemm_wgmma.grouped_gemm_wgmma,
    "gemm_mma": grouped_gemm_mma.grouped_gemm_mma,
    "gemm_simt": grouped_gemm_simt.grouped_gemm_simt,
}
"""Kernels of grouped products, which compute a dense one in its own form."""
