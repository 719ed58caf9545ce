"""Attention with wgmma, emulated, against the standard operator."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from moec.targets.base import SizeRange
from moec.targets.cuda.kernels.attention_mma import why_not
from moec.targets.cuda.kernels.attention_wgmma import ATTENTION_WGMMA, attention_wgmma, tile_keys
from moec.targets.gpu.kernels.attention_operands import AttentionLaunch
from moec.targets.tvm.heavy.attention import AttentionProblem

from ....products import thinned
from ...attention_cases import expected, operands
from .kernel_runner import build
from .test_attention import attend

USUAL = AttentionProblem(128, 128, 0.09, heads_per_group=2, causal="last")
PROBLEMS = {
    "large heads": (AttentionProblem(256, 256, 0.06, 2, causal="last", softcap=20.0), ml_dtypes.bfloat16),
    "usual heads": (USUAL, ml_dtypes.bfloat16),
    "small heads, capped": (AttentionProblem(64, 64, 0.12, 3, causal="first", softcap=2.0), np.float16),
    "odd heads, masked": (
        AttentionProblem(
            72, 40, 0.12, 2, mask="bool", mask_broadcast=(False, True, False), causal="lengths", has_lengths=True
        ),
        np.float16,
    ),
    "queries larger than values": (AttentionProblem(192, 128, 0.07, causal="last"), np.float16),
    "values in slices": (
        AttentionProblem(64, 512, 0.12, mask="float16", mask_broadcast=(True, True, False)),
        np.float16,
    ),
}


def check(problem: AttentionProblem, dtype: Any, sizes: list[tuple[int, int]], **options: Any) -> None:
    kernel = build(attention_wgmma(problem, np.dtype(dtype).name), "sm_90a", **options)
    for queries, keys in sizes:
        arrays = operands(problem, queries, keys)
        arrays |= {part: arrays[part].astype(dtype) for part in ("query", "key", "value")}
        actual, tolerance = attend(kernel, problem, arrays).astype(np.float64), 8 * ml_dtypes.finfo(dtype).eps
        np.testing.assert_allclose(actual, expected(problem, arrays), rtol=tolerance, atol=tolerance)


@thinned("name", PROBLEMS, 6)
def test_equals_the_operator(name):
    problem, dtype = PROBLEMS[name]
    assert why_not(problem, np.dtype(dtype).name) is None
    check(
        problem, dtype, [(3, 3 * tile_keys(problem) + 12), (0, 3), (1, 0 if problem.causal != "last" else 1), (70, 150)]
    )


@pytest.mark.nightly
@pytest.mark.parametrize("completion", ["latest", "earliest"])
def test_accesses_to_shared_memory_are_ordered(completion):
    check(AttentionProblem(16, 16, 0.25), np.float16, [(5, 300)], watch=True, completion=completion, first_thread=77)


def test_what_it_is_not_for_has_a_reason():
    launch = AttentionLaunch(USUAL, "bfloat16", SizeRange(17))
    assert ATTENTION_WGMMA.why_not(launch, "sm_90a") is None
    assert "needs sm_90a" in ATTENTION_WGMMA.why_not(launch, "sm_80")
    large = AttentionProblem(264, 256, 0.06)
    assert "heads of 264" in ATTENTION_WGMMA.why_not(AttentionLaunch(large, "bfloat16", SizeRange(17)), "sm_90a")
