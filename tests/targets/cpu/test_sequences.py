"""Attention of several sequences at once on CPU, and appending to their pages: as bit by bit alone."""

from __future__ import annotations

import dataclasses
import functools

import ml_dtypes
import numpy as np
import pytest

from moec.common.specs import ROW_SCALE_BYTES
from moec.targets.cpu.hardware.machine import Machine
from moec.targets.cpu.kernels.append import append
from moec.targets.cpu.kernels.attention import attention
from moec.targets.tvm.heavy.attention import AttentionProblem
from moec.targets.tvm.lowering.paged_tensors import AppendProblem

from .kernel_runner import Kernel, build

PAGE, GROUPS = 256, 2
ALONE = AttentionProblem(20, 24, 0.3, heads_per_group=2, causal="lengths", has_lengths=True, paged="float32")
QUERIES, KEYS = (1, 40, 0, 3, 1, 5), (600, 47, 9, 257, 1, 300)
"""New tokens of each sequence, and all of its tokens, the new ones included."""
STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "int8": np.int8}


@functools.cache
def built(problem: AttentionProblem) -> Kernel:
    machine = Machine.host()
    return build(attention(problem, machine, "float32"), machine)


def pages_of(size: int, stored: str, count: int) -> np.ndarray:
    random = np.random.default_rng(size)
    if stored != "int8":
        return random.standard_normal((count, 1, GROUPS, PAGE, size), np.float32).astype(STORED[stored])
    rows = random.integers(-127, 128, (count, 1, GROUPS, PAGE * size)).astype(np.int8)
    scales = random.uniform(0.01, 0.02, (count, 1, GROUPS, PAGE)).astype(ml_dtypes.bfloat16).view(np.int8)
    assert scales.shape[-1] == PAGE * ROW_SCALE_BYTES
    return np.concatenate([rows, scales], axis=-1)


def table_of(keys: tuple[int, ...], count: int) -> np.ndarray:
    """Pages of each sequence, in no order; behind its last one anything."""
    order = iter(np.random.default_rng(0).permutation(count))
    width = max(-(-number // PAGE) for number in keys)
    table = np.full((len(keys), width), 1 << 40)
    for own, number in zip(table, keys, strict=True):
        own[: -(-number // PAGE)] = [next(order) for _ in range(-(-number // PAGE))]
    return table


@pytest.mark.parametrize(
    "problem",
    [
        ALONE,
        dataclasses.replace(ALONE, window=70, softcap=2.0),
        dataclasses.replace(ALONE, heads_per_group=17, paged="bfloat16"),
        dataclasses.replace(ALONE, heads_per_group=1, paged="float16"),
        dataclasses.replace(ALONE, paged="int8", window=300),
        dataclasses.replace(ALONE, has_sinks=True, window=90),
        dataclasses.replace(ALONE, values_in_keys=True, value_size=12),
        dataclasses.replace(ALONE, values_in_keys=True, value_size=12, paged="int8"),
    ],
)
def test_each_sequence_has_the_bits_that_it_has_alone(problem):
    count = 12
    key, value = (pages_of(size, problem.paged, count) for size in (problem.head_size, problem.value_size))
    value = key if problem.values_in_keys else value
    table, starts = table_of(KEYS, count), np.cumsum((0, *QUERIES[:-1]))
    heads, total = GROUPS * problem.heads_per_group, sum(QUERIES)
    query = np.random.default_rng(1).standard_normal((1, heads, total, problem.head_size), np.float32)
    result = np.full((1, heads, total, problem.value_size), 7, np.float32)
    together = built(dataclasses.replace(problem, sequences=True))
    sinks = [np.array([2.5, -np.inf, 0, -1], np.float32)] if problem.has_sinks else []
    spans = np.stack([starts, QUERIES], axis=1)
    actual = together(query, key, value, np.array(KEYS), spans, table, *sinks, result)
    for start, new, keys, own in zip(starts, QUERIES, KEYS, table, strict=True):
        mine, part = own[: -(-keys // PAGE)], slice(start, start + new)
        own_query, own_result = (np.ascontiguousarray(array[:, :, part]) for array in (query, result))
        alone = built(problem)(own_query, key[mine], value[mine], np.array([keys]), *sinks, own_result)
        np.testing.assert_array_equal(actual[:, :, part], alone)
    assert not np.isin(actual, 7).any()


@pytest.mark.parametrize("queries", [1, 40])
def test_values_in_keys_are_their_first_columns(queries):
    problem, key = dataclasses.replace(ALONE, value_size=12), pages_of(ALONE.head_size, "float32", 3)
    query = np.random.default_rng(1).standard_normal((1, 2 * GROUPS, queries, ALONE.head_size), np.float32)
    result, lengths = np.full((1, 2 * GROUPS, queries, 12), 7, np.float32), np.array([600])
    expected = built(problem)(query, key, np.ascontiguousarray(key[..., :12]), lengths, result)
    actual = built(dataclasses.replace(problem, values_in_keys=True))(query, key, key, lengths, result)
    np.testing.assert_array_equal(actual, expected)


def test_no_sequence_and_no_query():
    together = built(dataclasses.replace(ALONE, sequences=True))
    key, value = pages_of(ALONE.head_size, "float32", 1), pages_of(ALONE.value_size, "float32", 1)
    result = np.full((1, 2 * GROUPS, 0, ALONE.value_size), 7, np.float32)
    query = np.zeros((1, 2 * GROUPS, 0, ALONE.head_size), np.float32)
    for count in (0, 2):
        lengths, spans, table = (np.zeros(shape, np.int64) for shape in ((count,), (count, 2), (count, 1)))
        assert together(query, key, value, lengths, spans, table, result).size == 0


@pytest.mark.parametrize("stored", ["float32", "float16", "int8"])
def test_entries_are_written_at_their_places_alone(stored):
    problem = AppendProblem((1, GROUPS), (20,), "float32", stored)
    machine = Machine.host()
    run = build(append(dataclasses.replace(problem, starts="int64", by_entry=True)), machine)
    alone = build(append(problem), machine)
    new = np.random.default_rng(2).standard_normal((1, GROUPS, 5, 20), np.float32)
    pages = pages_of(20, stored, 3)
    places = np.array([PAGE + 3, 2 * PAGE + 255, 0, -1, 3 * PAGE])
    actual = run(places, new, pages)
    expected = pages.copy()
    for entry, place in enumerate(places[:3]):
        one = np.ascontiguousarray(new[:, :, entry : entry + 1])
        expected = with_start(alone, int(place), one, expected)
    np.testing.assert_array_equal(actual, expected)


def with_start(kernel: Kernel, start: int, new: np.ndarray, pages: np.ndarray) -> np.ndarray:
    from moec.runtime.tensors import to_runtime

    written = pages.copy()
    kernel._function(start, to_runtime(new), to_runtime(written))
    return written
