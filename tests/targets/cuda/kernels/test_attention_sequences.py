"""Attention of a batch of sequences of different lengths, emulated, against the standard operator on each alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from moec.targets.cuda.kernels.attention_mma import attention_mma
from moec.targets.cuda.kernels.attention_wgmma import attention_wgmma
from moec.targets.gpu.kernels.attention_few import attention_few
from moec.targets.gpu.kernels.attention_join import attention_join
from moec.targets.gpu.kernels.attention_operands import FEW_QUERIES
from moec.targets.gpu.kernels.attention_tiled import attention_tiled
from moec.targets.tvm.heavy.attention import AttentionProblem

from ...attention_cases import expected
from .kernel_runner import build

PAGE = 256
GROUPS = 2
PROBLEM = AttentionProblem(
    24, 16, 0.3, heads_per_group=2, causal="lengths", has_lengths=True, paged="float16", sequences=True
)
LENGTHS = [(1, 1), (16, 255), (0, 0), (3, 256), (17, 257), (1, 600), (40, 600), (70, 70)]
"""New tokens of a sequence, and all of them."""


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Random sequences in shuffled pages. The numbers of each follow from its seed and nothing else."""

    problem: AttentionProblem
    lengths: Sequence[tuple[int, int]]
    dtype: str
    seeds: Sequence[int]

    def of(self, at: int) -> dict[str, np.ndarray]:
        """The operands of a sequence alone."""
        queries, keys = self.lengths[at]
        random, problem = np.random.default_rng([queries, keys, self.seeds[at]]), self.problem
        shapes = {
            "query": (1, GROUPS * problem.heads_per_group, queries, problem.head_size),
            "key": (1, GROUPS, keys, problem.head_size),
            "value": (1, GROUPS, keys, problem.value_size),
        }
        arrays = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        types = {"query": self.dtype, "key": problem.paged, "value": problem.paged}
        return {name: array.astype(types[name]) for name, array in arrays.items()} | {"lengths": np.array([keys])}

    def together(self) -> list[np.ndarray]:
        """The operands of a kernel: query, key, value, lengths, spans, table. What no sequence has is NaN, and what a
        table has behind the pages of a sequence leads nowhere."""
        alone = [self.of(at) for at in range(len(self.lengths))]
        query = np.concatenate([own["query"] for own in alone], axis=2)
        counts = np.array([queries for queries, _ in self.lengths], np.int64)
        needed = [-(-keys // PAGE) for _, keys in self.lengths]
        order = np.random.default_rng(len(self.lengths)).permutation(sum(needed) + 1)
        table, taken = np.full((len(needed), max(needed)), 1 << 40, np.int64), 0
        pages = {
            name: np.full((len(order), 1, GROUPS, PAGE, size), np.nan, self.problem.paged)
            for name, size in (("key", self.problem.head_size), ("value", self.problem.value_size))
        }
        for at, (own, count) in enumerate(zip(alone, needed, strict=True)):
            table[at, :count] = order[taken : taken + count]
            taken += count
            for number in range(count):
                for name, array in pages.items():
                    part = own[name][0, :, number * PAGE : (number + 1) * PAGE]
                    array[table[at, number], 0, :, : part.shape[1]] = part
        spans, lengths = (
            np.stack([np.cumsum(counts) - counts, counts], 1),
            np.concatenate([a["lengths"] for a in alone]),
        )
        return [query, pages["key"], pages["value"], lengths, spans, table]

    def expected(self) -> np.ndarray:
        """The results of the operator for each, one behind the other."""
        alone = dataclasses.replace(self.problem, sequences=False, paged="")
        axis = 1 if self.problem.query_major else 2
        return np.concatenate([expected(alone, self.of(at)) for at in range(len(self.lengths))], axis=axis)


class Both:
    """The kernels for few queries and for many, in two launches and the join, as the host makes them."""

    def __init__(self, problem: AttentionProblem, dtype: str, many: Any, architecture: str = "sm_80", **options: Any):
        self._few = build(attention_few(problem, dtype), architecture, **options)
        self._join = build(attention_join(problem, dtype), architecture, **options)
        self._many = build(many(problem, dtype), architecture, **options)
        self._problem, self.dtype = problem, dtype

    def __call__(self, sequences: Sequences, parts: int = 3, sinks: np.ndarray | None = None) -> np.ndarray:
        operands = sequences.together()
        _, heads, count, _ = operands[0].shape
        sinks = np.zeros(1, np.float32) if sinks is None else sinks
        places = (count, heads) if self._problem.query_major else (heads, count)
        result = np.full((1, *places, self._problem.value_size), 7, self.dtype)
        partial = [np.full((parts, 1, heads, count, n), np.nan, np.float32) for n in (self._problem.value_size, 2)]
        *partial, result = self._few.outputs(3, *operands, sinks, *partial, result)
        result = self._join(*partial, operands[4], result)
        return self._many(*operands, sinks, result)


@pytest.fixture(
    scope="module",
    params=[
        (attention_mma, "float16", "sm_80"),
        pytest.param((attention_tiled, "float32", "sm_80"), marks=pytest.mark.nightly),
        pytest.param((attention_wgmma, "float16", "sm_90a"), marks=pytest.mark.nightly),
    ],
    ids=["mma", "tiled", "wgmma"],
)
def attend(request) -> Both:
    many, dtype, architecture = request.param
    return Both(PROBLEM, dtype, many, architecture)


def test_each_sequence_attends_to_its_own_pages(attend):
    for lengths in (LENGTHS, [(1, 300)], [(0, 5)], [(FEW_QUERIES, 16), (FEW_QUERIES + 1, 17)]):
        sequences = Sequences(PROBLEM, lengths, attend.dtype, range(len(lengths)))
        actual = attend(sequences).astype(np.float64)
        np.testing.assert_allclose(actual, sequences.expected(), rtol=4e-3, atol=4e-3)


def test_bits_of_a_sequence_do_not_depend_on_others(attend):
    """Others may come before it or behind, have other numbers, and need more pages, from which more parts follow."""
    for own in ((2, 520), (30, 300)):
        alone = attend(Sequences(PROBLEM, [own], attend.dtype, [5]))
        for lengths, seeds, parts, at in (
            ([own, (1, 600), (20, 20)], [5, 0, 1], 3, 0),
            ([(3, 3), (20, 20), own], [2, 9, 5], 16, 2),
        ):
            together = attend(Sequences(PROBLEM, lengths, attend.dtype, seeds), parts)
            first = sum(queries for queries, _ in lengths[:at])
            np.testing.assert_array_equal(together[:, :, first : first + own[0]], alone)


@pytest.mark.nightly
@pytest.mark.parametrize(("many", "architecture"), [(attention_mma, "sm_80"), (attention_wgmma, "sm_90a")])
def test_on_tensor_cores_with_windows_and_sinks(many, architecture):
    problem = dataclasses.replace(PROBLEM, window=270, query_major=True, has_sinks=True)
    sinks = np.array([2.5, -np.inf, 0, -1], np.float32)
    watched = Both(problem, "float16", many, architecture, watch=True, first_thread=77, completion="earliest")
    lengths = [(1, 600), (33, 600), (2, 3)]
    sequences = Sequences(problem, lengths, "float16", [1, 2, 3])
    without = Sequences(dataclasses.replace(problem, has_sinks=False), lengths, "float16", [1, 2, 3])
    actual = watched(sequences, sinks=sinks).astype(np.float64)
    np.testing.assert_allclose(actual[:, :, 1], without.expected()[:, :, 1], rtol=4e-3, atol=4e-3)
    assert np.abs(actual[:, :, 0] - without.expected()[:, :, 0]).max() > 0.01
    alone = watched(Sequences(problem, lengths[1:2], "float16", [2]), sinks=sinks)
    np.testing.assert_array_equal(actual[:, 1:34], alone)


def test_no_number_of_a_table_leads_outside_of_the_pages(attend):
    sequences = Sequences(PROBLEM, [(2, 300), (20, 30)], attend.dtype, [0, 1])
    operands = sequences.together()
    for wrong in (-1, 1 << 40):
        operands[5][:] = wrong
        count = operands[0].shape[2]
        result = np.full((1, 4, count, PROBLEM.value_size), 7, attend.dtype)
        attend._many(*operands, np.zeros(1, np.float32), result)
