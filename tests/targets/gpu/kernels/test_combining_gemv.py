"""The fused last product for few tokens, which also sums over a token's experts, in the emulator."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moec.targets.gpu.kernels.combining_gemv import MOST_TOGETHER, CombiningProblem, combining_gemv, why_not
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.gpu.kernels.packed_format import PackedFormat
from moec.targets.tvm.heavy.experts import CombineProblem

from ...cuda.kernels.kernel_runner import build
from ...cuda.kernels.layers import DTYPES, TOLERANCES, undefined

E, INNER, WIDTH = 5, 72, 22
RANDOM = np.random.default_rng(0)


def _problem(slots: int, dtype: str = "bfloat16", **combine: object) -> CombiningProblem:
    product = GroupedProblem(E, INNER, WIDTH, scattered=True, dtype=dtype, matrix_dtype=dtype, out_dtype=dtype)
    return CombiningProblem(product, CombineProblem(E, WIDTH, dtype, pair_dtype=dtype, **combine), slots)


def _ids(tokens: int, slots: int) -> np.ndarray:
    return RANDOM.integers(-1, E + 1, (tokens, slots)).astype(np.int32)


def _check(problem: CombiningProblem, kernel: object, ids: np.ndarray) -> None:
    dtype, combine = DTYPES[problem.product.dtype], problem.combine
    rows = RANDOM.standard_normal((ids.size + 3, INNER)).astype(dtype)
    matrix = (RANDOM.standard_normal((E, WIDTH, INNER)) / INNER**0.5).astype(dtype)
    bias, weights = RANDOM.standard_normal((E, WIDTH), np.float32), RANDOM.random(ids.shape, np.float32)
    y = kernel(rows, matrix, bias, weights, ids, undefined((len(ids), WIDTH), problem.product.dtype))
    expected = np.zeros((len(ids), WIDTH))
    for (t, slot), expert in np.ndenumerate(ids):
        if 0 <= expert < E:
            result = matrix[expert].astype(np.float64) @ rows[t * ids.shape[1] + slot].astype(np.float64) + bias[expert]
            result = np.clip(result, -combine.limit, combine.limit) if combine.limit else result
            expected[t] += (weights[t, slot] if combine.weighted else 1) * result
    largest = max(np.abs(expected).max(initial=0), 1e-3)
    np.testing.assert_allclose(y.astype(np.float64), expected, atol=TOLERANCES[combine.dtype] * largest, rtol=0)


@pytest.mark.parametrize(
    ("slots", "dtype", "combine"),
    [
        (1, "float32", {}),
        (2, "bfloat16", {"weighted": True}),
        pytest.param(  # in two turns
            *(MOST_TOGETHER + 3, "float16", {"weighted": True, "limit": 0.5}), marks=pytest.mark.nightly
        ),
    ],
)
def test_tokens_are_the_sums_of_their_experts(slots, dtype, combine):
    problem = _problem(slots, dtype, **combine)
    kernel = build(combining_gemv(problem), watch=True)
    for ids in (*(_ids(tokens, slots) for tokens in (0, 1, 7)), np.full((3, slots), 2), np.full((3, slots), -1)):
        _check(problem, kernel, ids.astype(np.int32))


def test_a_slot_is_added_in_its_turn():
    """Slots are added in their order: in float32, 1e8 - 1e8 + 1 is 1 only in this order."""
    problem = _problem(3, "float32")
    rows, matrix = np.zeros((3, INNER), np.float32), np.zeros((E, WIDTH, INNER), np.float32)
    rows[:, 0], matrix[:, :, 0] = [1e8, -1e8, 1], 1
    arrays = [rows, matrix, np.zeros((E, WIDTH), np.float32), np.ones((1, 3), np.float32)]
    y = build(combining_gemv(problem))(*arrays, np.int32([[0, 1, 2]]), undefined((1, WIDTH), "float32"))
    np.testing.assert_array_equal(y, np.ones((1, WIDTH)))


def test_what_it_cannot_do():
    problem = _problem(2)
    assert why_not(problem) is None
    odd = dataclasses.replace(problem, product=dataclasses.replace(problem.product, inner=71))
    assert "71 inputs; a lane reads 8 at once" in why_not(odd)
    several = dataclasses.replace(problem, product=dataclasses.replace(problem.product, first_expert=0))
    assert "several formats" in why_not(several)
    identity = dataclasses.replace(problem, combine=dataclasses.replace(problem.combine, identity_experts=1))
    assert "return their token" in why_not(identity)
    stored = PackedFormat("int4", 64, "float16")
    assert (
        why_not(dataclasses.replace(problem, product=dataclasses.replace(problem.product, inner=128, stored=stored)))
        is None
    )
