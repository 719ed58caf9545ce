"""The CUDA C of the main kernels as golden files, so that the effect of a change on them is reviewed with the
change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.targets.cuda.kernels.grouped_gemm_mma import grouped_gemm_mma
from moec.targets.cuda.kernels.grouped_gemm_umma import grouped_gemm_umma
from moec.targets.cuda.kernels.grouped_gemm_wgmma import grouped_gemm_wgmma
from moec.targets.cuda.pipeline import sources_of
from moec.targets.gpu.kernels import combine, dispatch, route
from moec.targets.gpu.kernels.activation import experts_epilogue
from moec.targets.gpu.kernels.grouped_gemm_simt import grouped_gemm_simt
from moec.targets.gpu.kernels.grouped_gemv import grouped_gemv
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.tvm.heavy.experts import CombineProblem
from moec.targets.tvm.heavy.route import RouteProblem

from .kernel_runner import source_of

SILU, SILU_IN_FULL = (experts_epilogue(ExpertsSpec(), dtype) for dtype in ("bfloat16", "float32"))


def _product(rows: int, dtype: str = "bfloat16") -> GroupedProblem:
    types = {"dtype": dtype, "matrix_dtype": dtype, "out_dtype": dtype}
    return GroupedProblem(8, 128, 64, rows, gated=True, gathered=True, **types)


KERNELS: dict[str, Callable[[], Any]] = {
    "route": lambda: route.route(RouteProblem(RouteSpec(k=2), 8)),
    "dispatch": lambda: dispatch.dispatch(8, 16),
    "grouped_gemm_mma": lambda: grouped_gemm_mma(_product(16), SILU),
    "grouped_gemm_simt": lambda: grouped_gemm_simt(_product(64, "float32"), SILU_IN_FULL),
    "grouped_gemm_umma": lambda: grouped_gemm_umma(_product(256), SILU),
    "grouped_gemm_wgmma": lambda: grouped_gemm_wgmma(_product(64), SILU),
    "grouped_gemv": lambda: grouped_gemv(_product(16), SILU),
    "combine": lambda: combine.combine(CombineProblem(8, 64, "bfloat16", weighted=True)),
}


ARCHITECTURES = {"grouped_gemm_umma": "sm_100a", "grouped_gemm_wgmma": "sm_90a"}
"""Architectures of kernels that are for one alone."""


def text_of(name: str) -> str:
    source = source_of(KERNELS[name](), ARCHITECTURES.get(name, "sm_80"))
    return sources_of(source, ["kernel"])["kernel"]


@pytest.mark.parametrize("name", KERNELS)
def test_text(name, golden):
    golden(f"cuda_{name}.cu", text_of(name))


def test_a_change_is_noticed(golden, request):
    if request.config.getoption("--update-golden"):
        pytest.skip("files are being written")
    changed = text_of("combine").replace("+", "-", 1)
    with pytest.raises(AssertionError, match=r"cuda_combine.cu differs; run pytest --update-golden"):
        golden("cuda_combine.cu", changed)
