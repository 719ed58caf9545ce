"""The kernels of attention for CUDA, emulated, against the standard operator."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tvm import tirx

from moec.targets.cuda.kernels import attention_mma
from moec.targets.cuda.kernels.attention_wgmma import attention_wgmma
from moec.targets.gpu.kernels.attention_few import attention_few
from moec.targets.gpu.kernels.attention_join import attention_join, parts_for
from moec.targets.gpu.kernels.attention_operands import why_not
from moec.targets.gpu.kernels.attention_tiled import attention_tiled
from moec.targets.tvm.heavy.attention import AttentionProblem

from ....products import thinned
from ...attention_cases import ON_NONE, PROBLEM, expected, operands, room, with_values_in_keys
from .kernel_runner import Kernel, build

PARTS = 3
"""Parts of the keys, some of which may be empty."""

SIZES = {attention_few: [(0, 3), (1, 0), (1, 1), (3, 40)], attention_tiled: [(0, 3), (3, 0), (33, 70)]}
"""Numbers of queries and keys."""
PROBLEMS = {
    "plain": PROBLEM,
    "odd sizes": AttentionProblem(1, 7, 1.0),
    "many columns": AttentionProblem(8, 300, 0.1),
    "causal, capped": dataclasses.replace(PROBLEM, causal="first", softcap=2.0, query_major=True),
    "causal behind a cache": dataclasses.replace(PROBLEM, causal="last", mask="float16", mask_broadcast=(True,) * 3),
    "causal within lengths": dataclasses.replace(
        PROBLEM, mask="bool", mask_broadcast=(False, True, False), causal="lengths", has_lengths=True
    ),
    "added mask": dataclasses.replace(PROBLEM, mask="float32", mask_broadcast=(False, False, False)),
}


class InParts:
    """:func:`attention_few` on keys in parts, followed by the join, callable like one kernel."""

    def __init__(self, problem: AttentionProblem, dtype: str, parts: int = PARTS, **options: Any) -> None:
        self._attend, self._join = build(attention_few(problem, dtype), **options), _joining(_joined(problem), dtype)
        self._parts, self._problem = parts, problem

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        *inputs, result = arrays
        rows = (self._parts, *arrays[0].shape[:3])
        partial = [np.full((*rows, n), np.nan, np.float32) for n in (self._problem.value_size, 2)]
        return self._join(*self._attend.outputs(3, *inputs, *partial, result))


@functools.cache
def _joining(problem: AttentionProblem, dtype: str) -> Kernel:
    return build(attention_join(problem, dtype))


def _joined(problem: AttentionProblem) -> AttentionProblem:
    """A problem whose parts are joined by the same kernel."""
    return AttentionProblem(1, problem.value_size, 1.0, query_major=problem.query_major)


def built(generate: Callable[[AttentionProblem, str], Any], problem: AttentionProblem, dtype: str, **options: Any):
    if generate is attention_few:
        return InParts(problem, dtype, **options)
    architecture = "sm_90a" if generate is attention_wgmma else "sm_80"
    return build(generate(problem, dtype), architecture, **options)


MASKED = dataclasses.replace(PROBLEM, mask="float32", mask_broadcast=ON_NONE)


@functools.cache
def _masked(generate: Callable[[AttentionProblem, str], Any]) -> Any:
    return built(generate, MASKED, "float32")


def attend(kernel: Any, problem: AttentionProblem, arrays: dict[str, np.ndarray]) -> np.ndarray:
    query = arrays["query"]
    mask, lengths = arrays.get("mask", np.zeros((1, 1, 1, 1), bool)), arrays.get("lengths", np.zeros(1, np.int64))
    sinks = arrays.get("sinks", np.zeros(1, np.float32))
    result = room(problem, query)
    return kernel(query, arrays["key"], arrays["value"], mask, lengths, sinks, result)


@thinned(
    "name, generate",
    [
        (name, generate)
        for name in PROBLEMS
        for generate in SIZES
        if (name, generate) not in (("added mask", attention_few), ("odd sizes", attention_tiled))
    ],
    3,
)
def test_equals_the_operator(name, generate):
    problem = PROBLEMS[name]
    kernel = built(generate, problem, "float32")
    for queries, keys in SIZES[generate]:
        if problem.causal != "last" or keys >= queries:
            arrays = operands(problem, queries, keys)
            expected_result = expected(problem, arrays)
            np.testing.assert_allclose(attend(kernel, problem, arrays), expected_result, rtol=3e-5, atol=3e-5)


HALF = AttentionProblem(72, 40, 0.12, heads_per_group=2)
ON_TENSOR_CORES = {
    "capped": (dataclasses.replace(HALF, causal="first", softcap=2.0, query_major=True), np.float16),
    "masked": (
        dataclasses.replace(HALF, mask="bool", mask_broadcast=(False, True, False), causal="lengths", has_lengths=True),
        ml_dtypes.bfloat16,
    ),
    "many columns": (AttentionProblem(8, 512, 0.1, 3), np.float16),
}


@thinned("name", ON_TENSOR_CORES, 2)
def test_tensor_cores(name):
    problem, dtype = ON_TENSOR_CORES[name]
    assert attention_mma.why_not(problem, np.dtype(dtype).name) is None
    kernel = build(attention_mma.attention_mma(problem, np.dtype(dtype).name))
    for queries, keys in [(0, 3), (3, 0), (5, 7), (37, 140)]:
        arrays = operands(problem, queries, keys)
        arrays |= {part: arrays[part].astype(dtype) for part in ("query", "key", "value")}
        actual, tolerance = attend(kernel, problem, arrays).astype(np.float64), 8 * ml_dtypes.finfo(dtype).eps
        np.testing.assert_allclose(actual, expected(problem, arrays), rtol=tolerance, atol=tolerance)


@thinned(
    "generate, dtype, tolerance",
    [
        (attention_few, ml_dtypes.bfloat16, 3e-2),
        (attention_tiled, np.float16, 4e-3),
        (attention_mma.attention_mma, np.float16, 4e-3),
    ],
    2,
)
def test_half_precision_in_any_order_of_threads(generate, dtype, tolerance):
    kernel = built(generate, HALF, np.dtype(dtype).name, watch=True, first_thread=77, completion="earliest")
    arrays = {name: array.astype(dtype) for name, array in operands(HALF, 3, 70, batch=1).items()}
    actual = attend(kernel, HALF, arrays).astype(np.float64)
    np.testing.assert_allclose(actual, expected(HALF, arrays), rtol=tolerance, atol=tolerance)


def in_pages(state: np.ndarray, size: int) -> np.ndarray:
    """Keys [B, G, P, D] as pages of ``size`` keys, with NaN after the last key."""
    count = -(-state.shape[2] // size)
    padded = np.full((*state.shape[:2], count * size, state.shape[3]), np.nan, state.dtype)
    padded[:, :, : state.shape[2]] = state
    return np.ascontiguousarray(padded.reshape(*state.shape[:2], count, size, state.shape[3]).transpose(2, 0, 1, 3, 4))


KERNELS = pytest.mark.parametrize(
    ("generate", "dtype"),
    [
        (attention_few, np.float32),
        pytest.param(attention_tiled, np.float32, marks=pytest.mark.nightly),
        pytest.param(attention_mma.attention_mma, np.float16, marks=pytest.mark.nightly),
        (attention_wgmma, np.float16),
    ],
)
"""One kernel without tensor cores and one with them in every run."""
PAGED = dataclasses.replace(HALF, causal="lengths", has_lengths=True, paged="float16")


@KERNELS
def test_keys_in_pages(generate, dtype):
    """Keys in several pages of 256, or in one page that is just large enough. Queries may have another type than
    keys."""
    kernel = built(generate, PAGED, np.dtype(dtype).name)
    for queries, keys, page in [(3, 300, 256), (1, 256, 256), (3, 7, 7), (2, 0, 0), (0, 5, 5)]:
        arrays = operands(PAGED, queries, keys)
        arrays["query"] = arrays["query"].astype(dtype)
        arrays |= {name: arrays[name].astype(np.float16) for name in ("key", "value")}
        arrays["lengths"][:] = keys, max(keys - 2, 0)
        expected_result = expected(PAGED, arrays)
        arrays |= {name: in_pages(arrays[name], max(page, 1)) for name in ("key", "value")}
        actual = attend(kernel, PAGED, arrays).astype(np.float64)
        np.testing.assert_allclose(actual, expected_result, rtol=4e-3, atol=4e-3)


LATENT = AttentionProblem(
    72, 64, 0.12, 4, causal="lengths", has_lengths=True, paged="float16", values_in_keys=True, query_major=True
)


@KERNELS
@pytest.mark.parametrize("size", [64, pytest.param(48, marks=pytest.mark.nightly)])
def test_values_are_the_first_columns_of_their_keys(generate, dtype, size):
    """The other columns of a key, and keys that are not in use, do not enter the sums."""
    problem = dataclasses.replace(LATENT, value_size=size)
    kernel = built(generate, problem, np.dtype(dtype).name)
    for queries, keys, page in [(3, 300, 256), (1, 7, 7), (2, 0, 0)]:
        arrays = operands(problem, queries, keys)
        arrays["query"] = arrays["query"].astype(dtype)
        arrays["key"] = arrays["key"].astype(np.float16)
        arrays["lengths"][:] = keys, max(keys - 2, 0)
        expected_result = expected(problem, with_values_in_keys(problem, arrays))
        pages = in_pages(arrays["key"], max(page, 1))
        actual = attend(kernel, problem, {**arrays, "key": pages, "value": pages}).astype(np.float64)
        np.testing.assert_allclose(actual, expected_result, rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("generate", SIZES)
def test_keys_that_are_not_in_use_are_not_read(generate):
    problem = dataclasses.replace(PROBLEM, has_lengths=True)
    arrays = operands(problem, 2, 9)
    arrays["lengths"][:] = 5, 0
    expected_result = expected(problem, arrays)
    arrays["lengths"][1] = 2_000_000 - 2**32  # negative, so no keys, but positive if cut to 32 bits
    arrays["key"][0, :, 5:] = arrays["value"][0, :, 5:] = arrays["key"][1] = arrays["value"][1] = np.nan
    actual = attend(built(generate, problem, "float32"), problem, arrays)
    np.testing.assert_allclose(actual, expected_result, rtol=3e-5, atol=3e-5)
    assert not actual[1].any()


@pytest.mark.parametrize("generate", SIZES)
@pytest.mark.parametrize("name", ["query", "value", "mask"])
def test_infinity_spreads_as_in_the_reference(name, generate):
    """Infinity spreads even from keys that a mask hides, since zero times infinity is NaN."""
    arrays = operands(MASKED, 2, 9)
    arrays["mask"][..., -1] = -np.inf
    arrays[name][..., -1, 7] = np.inf
    expected_result = expected(MASKED, arrays)
    assert np.isnan(expected_result).any()
    actual = attend(_masked(generate), MASKED, arrays)
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected_result))


def test_what_cannot_be_computed_has_a_reason():
    assert "float64" in why_not(PROBLEM, "float64") and why_not(PROBLEM, "bfloat16") is None
    assert "mask of type int32" in why_not(dataclasses.replace(PROBLEM, mask="int32"), "float32")
    refused = {
        "float32 tensors": (HALF, "float32"),
        "heads of 72 and 7": (dataclasses.replace(HALF, value_size=7), "float16"),
        "heads of 264": (dataclasses.replace(HALF, head_size=264), "float16"),
        "values of 264": (dataclasses.replace(HALF, value_size=264), "float16"),
        "keys in float16 and queries in bfloat16": (PAGED, "bfloat16"),
    }
    for reason, problem in refused.items():
        assert reason in attention_mma.why_not(*problem)


@KERNELS
def test_sinks_take_weight_and_give_nothing(generate, dtype):
    """A sink is equivalent to a further key of zeros to which the mask adds the sink; a sink of -inf has no effect."""
    problem = dataclasses.replace(HALF, mask="float32", mask_broadcast=(True, False, False))
    kernel = built(generate, dataclasses.replace(problem, has_sinks=True), np.dtype(dtype).name)
    for queries, keys in [(3, 70), (2, 0)]:
        arrays = operands(problem, queries, keys)
        arrays |= {name: arrays[name].astype(dtype) for name in ("query", "key", "value")}
        sinks = np.array([2.5, -np.inf, 0, -1], np.float32)
        before = [(0, 0), (0, 0), (1, 0), (0, 0)]
        padded = {name: np.pad(arrays[name], before) for name in ("key", "value")}
        column = np.broadcast_to(sinks[:, None, None], (1, 4, queries, 1))
        padded["mask"] = np.concatenate([column, arrays["mask"]], axis=3)
        expected_result = expected(problem, arrays | padded)
        actual = attend(kernel, problem, arrays | {"sinks": sinks}).astype(np.float64)
        tolerance = 4e-3 if dtype is np.float16 else 3e-5
        np.testing.assert_allclose(actual, expected_result, rtol=tolerance, atol=tolerance)


def _on_tensor_cores(problem: AttentionProblem, arrays: dict[str, np.ndarray]) -> np.ndarray:
    kernel = built(attention_mma.attention_mma, problem, "float16")
    return attend(kernel, problem, arrays).astype(np.float64)


@pytest.mark.nightly
@pytest.mark.parametrize("mask", ["float32", "bfloat16"])
def test_a_row_of_lowest_numbers_in_the_mask_has_equal_weights(mask):
    """The lowest number is in use for minus infinity. Scores are that number then, and their differences zero."""
    problem = dataclasses.replace(HALF, mask=mask, mask_broadcast=(True, True, False))
    arrays = operands(problem, 5, 70)
    arrays |= {name: arrays[name].astype(np.float16) for name in ("query", "key", "value")}
    arrays["mask"][:, :, 1, :] = ml_dtypes.finfo(arrays["mask"].dtype).min
    actual, mean = _on_tensor_cores(problem, arrays), arrays["value"].astype(np.float64).mean(2)
    np.testing.assert_allclose(actual[:, :, 1], mean.repeat(2, 1), rtol=4e-3, atol=4e-3)
    np.testing.assert_allclose(actual, expected(problem, arrays), rtol=4e-3, atol=4e-3)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "changes",
    [
        {"scale": -0.3},
        {"scale": 0.0},
        {"scale": 1.5},
        {"scale": 1.0, "mask": "bool", "mask_broadcast": (True, False, True)},
    ],
    ids=["the lowest product has the highest score", "equal scores", "a scale above one", "hidden keys"],
)
def test_any_scale(changes):
    problem = dataclasses.replace(HALF, causal="last", **changes)
    arrays = operands(problem, 5, 70)
    arrays |= {name: (3 * arrays[name]).astype(np.float16) for name in ("query", "key", "value")}
    np.testing.assert_allclose(_on_tensor_cores(problem, arrays), expected(problem, arrays), rtol=1e-2, atol=1e-2)


@pytest.mark.nightly
def test_sinks_beside_products_that_are_not_scaled():
    """The same sinks as those of a mask of zeros, with which scores are scaled."""
    sinks = {"sinks": np.array([2.5, -np.inf, np.finfo(np.float32).min, -1], np.float32)}
    masked = dataclasses.replace(HALF, has_sinks=True, mask="float32", mask_broadcast=(True, True, True))
    arrays = operands(HALF, 3, 70)
    arrays = {name: array.astype(np.float16) for name, array in arrays.items()}
    actual = _on_tensor_cores(dataclasses.replace(HALF, has_sinks=True), arrays | sinks)
    other = _on_tensor_cores(masked, arrays | sinks | {"mask": np.zeros((1, 1, 1, 70), np.float32)})
    np.testing.assert_allclose(actual, other, rtol=2e-3, atol=2e-3)
    without = _on_tensor_cores(HALF, arrays)
    np.testing.assert_allclose(actual[:, 1:3], without[:, 1:3], rtol=2e-3, atol=2e-3)
    assert np.abs(actual[:, [0, 3]] - without[:, [0, 3]]).max() > 0.01


def test_parts_follow_from_sizes():
    """There are enough parts for about 256 blocks of threads, but each part has at least 256 keys."""
    for tiles, keys, parts in ((8, 32768, 32), (8, 256, 1), (8, 257, 2), (1, 100_000, 64), (300, 5000, 1), (0, 0, 1)):
        assert int(parts_for(tirx.IntImm("int64", tiles), tirx.IntImm("int64", keys))) == parts
