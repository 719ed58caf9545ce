"""Windows in the kernels of attention for CUDA, emulated: keys before them have no weight and are not read."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from moec.targets.cuda.kernels.attention_mma import attention_mma
from moec.targets.cuda.kernels.attention_wgmma import attention_wgmma
from moec.targets.gpu.kernels.attention_few import attention_few
from moec.targets.gpu.kernels.attention_tiled import attention_tiled
from moec.targets.tvm.heavy.attention import AttentionProblem

from ....products import thinned
from ...attention_cases import expected, operands
from .test_attention import attend, built, in_pages

CAUSAL = AttentionProblem(16, 24, 0.3, heads_per_group=2, causal="last")
WINDOWS = {
    "of one key": dataclasses.replace(CAUSAL, causal="first", window=1),
    "longer than a tile": dataclasses.replace(CAUSAL, window=90),
    "within lengths": dataclasses.replace(CAUSAL, causal="lengths", has_lengths=True, window=40),
    "beside padding": dataclasses.replace(CAUSAL, mask="bool", mask_broadcast=(False, True, True), window=70),
    "longer than all keys": dataclasses.replace(CAUSAL, causal="first", window=2**29, softcap=2.0),
}
KERNELS = {
    attention_few: ("float32", [(1, 700), (5, 301), (0, 3), (1, 1)], 3e-5),
    attention_tiled: ("float32", [(3, 201), (70, 150), (0, 3)], 3e-5),
    attention_mma: ("float16", [(3, 201), (70, 150), (0, 3)], 8e-3),
    attention_wgmma: ("float16", [(3, 401), (140, 150), (0, 3)], 8e-3),
}


def run(generate: Any, problem: AttentionProblem, arrays: dict[str, np.ndarray]) -> np.ndarray:
    dtype = KERNELS[generate][0]
    arrays = {name: each.astype(dtype) if each.dtype == np.float32 else each for name, each in arrays.items()}
    return attend(built(generate, problem, dtype), problem, arrays)


@thinned("name, generate", [(name, generate) for name in WINDOWS for generate in KERNELS], 5)
def test_equals_the_operator_with_a_mask(name, generate):
    problem, (_, sizes, tolerance) = WINDOWS[name], KERNELS[generate]
    for queries, keys in sizes:
        arrays = operands(problem, queries, keys, batch=2, groups=1)
        actual = run(generate, problem, arrays).astype(np.float64)
        np.testing.assert_allclose(actual, expected(problem, arrays), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("generate", "queries"), [(attention_few, 2), (attention_mma, 70)])
def test_keys_before_all_windows_are_not_read(generate, queries):
    """They may hold anything; those inside may not."""
    problem = dataclasses.replace(CAUSAL, window=30)
    arrays = operands(problem, queries, 400, batch=1, groups=1)
    found = run(generate, problem, arrays)
    for place, is_equal in ((200, True), (398, False)):
        spoiled = {name: array.copy() for name, array in arrays.items()}
        spoiled["key"][:, :, place] = spoiled["value"][:, :, place] = np.nan
        assert np.array_equal(run(generate, problem, spoiled), found) == is_equal


def test_windows_over_keys_in_pages():
    problem = dataclasses.replace(CAUSAL, causal="lengths", has_lengths=True, window=300, paged="float32")
    arrays = operands(problem, 3, 1000, batch=2, groups=1)
    arrays["lengths"][:] = 1000, 520
    expected_result = expected(problem, arrays)
    arrays |= {name: in_pages(arrays[name], 256) for name in ("key", "value")}
    actual = attend(built(attention_few, problem, "float32"), problem, arrays)
    np.testing.assert_allclose(actual, expected_result, rtol=3e-5, atol=3e-5)
