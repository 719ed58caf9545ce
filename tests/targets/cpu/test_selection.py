"""The selector: the first eligible kernel wins, and every candidate says why it was chosen or not."""

from __future__ import annotations

import pytest

from moec.common.errors import UnsupportedError
from moec.targets.cpu.hardware.machine import MACHINES

MACHINE = MACHINES["avx512"]


def _select(dtype: str, constant: tuple[int, int] | None = None):
    from moec.targets.cpu.matmul import KERNELS, MatmulProblem
    from moec.targets.tvm.kernels.kernel import select

    from .dense_products import problem

    return select(KERNELS, MatmulProblem(dtype, problem(*constant, MACHINE) if constant else None), MACHINE)


def test_an_eligible_kernel_that_loses_says_to_whom():
    selection = _select("float32", (100, 50))
    gemm, batched = selection.candidates
    assert (selection.kernel.name, gemm.chosen, batched.chosen) == ("gemm", True, False)
    assert gemm.reason == (
        "constant weight packed ahead; float32 weights, float32 rows; "
        "register tile of 12 rows x 32 columns (avx512); float32 in memory, float32 sums"
    )
    assert batched.eligible
    assert batched.reason.endswith("; gemm is preferred")


def test_an_ineligible_kernel_says_why():
    gemm, batched = _select("bfloat16").candidates
    assert (gemm.eligible, gemm.reason) == (
        False,
        "the right factor is not a constant matrix, so it cannot be packed ahead",
    )
    assert batched.chosen


def test_no_eligible_kernel_is_an_error_with_all_reasons():
    with pytest.raises(UnsupportedError, match=r"gemm: .*constant.*; batched_matmul: element type int32; .*float32"):
        _select("int32")


def test_only_kernels_that_sum_speak_of_sums():
    from moec.targets.cpu.kernels.combine import COMBINE, TRIM
    from moec.targets.cpu.kernels.gather import GATHER, GatheredRows
    from moec.targets.tvm.heavy.experts import CombineProblem

    assert GATHER.how(GatheredRows(64, "float32"), MACHINE).endswith("product; float32 in memory")
    pairs = CombineProblem(4, 64, "float32")
    assert COMBINE.how(pairs, MACHINE).endswith("float32 in memory, float32 sums")
    assert TRIM.how(pairs, MACHINE).endswith("per row; float32 in memory")
