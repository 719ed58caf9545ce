"""Linear attention of a batch of sequences, emulated, whose states lie in entries."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moec.targets.gpu.kernels.linear_attention import linear_attention
from moec.targets.tvm.heavy.linear_attention import LinearAttentionProblem

from .kernel_runner import build

PROBLEM = LinearAttentionProblem(2, 2, 5, 33, 0.3, "channel", delta=True, sequences=True)
COUNTS = (3, 0, 1, 7)


@pytest.fixture(scope="module")
def in_entries():
    return build(linear_attention(dataclasses.replace(PROBLEM, in_entries=True), "sm_80"))


def operands() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Operands of all tokens, their spans, and the states of the sequences."""
    random, sizes = np.random.default_rng(0), {"B": 1, "T": sum(COUNTS), "N": len(COUNTS)}
    shapes = {name: [sizes.get(size, size) for size in shape] for name, shape in PROBLEM.parameters}
    arrays = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    ends = np.cumsum(COUNTS)
    spans = np.stack([ends - COUNTS, COUNTS], axis=1).astype(np.int64)
    return [arrays[name] for name in ("query", "key", "value", "decay", "beta")], spans, arrays["state"]


def test_states_are_read_in_one_entry_and_written_to_another(in_entries):
    """The bits are those of states side by side. Several sequences read one entry, as forks do; others stay."""
    (query, key, value, decay, beta), spans, states = operands()
    before, after = np.array([4, 4, 0, 2]), np.array([1, 6, 5, 3])
    entries = np.full((8, 1, *states.shape[1:]), np.nan, np.float32)
    entries[[4, 0, 2], 0] = states[1:]
    y = np.zeros((1, sum(COUNTS), 2 * 2 * 33), np.float32)
    beside = build(linear_attention(PROBLEM, "sm_80"))
    own = [query, key, value, entries[before, 0], decay, beta, spans, y]
    *_, expected, states_after = beside.outputs(2, *own, np.empty_like(states))
    *_, written, result = in_entries.outputs(2, query, key, value, decay, beta, spans, before, after, entries, y)
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(written[after, 0], states_after)
    np.testing.assert_array_equal(written[6], written[4])  # without tokens
    others = [0, 2, 4, 7]
    np.testing.assert_array_equal(written[others], entries[others])


@pytest.mark.parametrize("wrong", [-1, 8, 1 << 40])
def test_no_number_leads_outside_of_the_entries(in_entries, wrong):
    (query, key, value, decay, beta), spans, states = operands()
    entries, y = np.zeros((8, 1, *states.shape[1:]), np.float32), np.zeros((1, sum(COUNTS), 2 * 2 * 33), np.float32)
    right = np.array([1, 2, 3, 4])
    for before, after in ((np.full(4, wrong), right), (right, np.full(4, wrong))):
        written, result = in_entries.outputs(2, query, key, value, decay, beta, spans, before, after, entries, y)
        assert not written.any() and not result.any()
