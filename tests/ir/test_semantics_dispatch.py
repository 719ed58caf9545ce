"""Operators over dispatched rows against loops over pairs."""

from __future__ import annotations

import numpy as np
import pytest

from moec.ir.dialect import Arithmetic, DispatchSpec, ProductSpec
from moec.ir.products import rounded_rows
from moec.ir.semantics_dispatch import combine, dispatch, grouped_matmul

E, k = 4, 2


def routed(tokens: int, kind: str) -> np.ndarray:
    generator = np.random.default_rng(tokens)
    ids = {
        "any": generator.integers(-1, E, (tokens, k)),
        "one": np.full((tokens, k), 2),
        "none": np.full((tokens, k), -1),
    }
    return ids[kind].astype(np.int32)


@pytest.mark.parametrize("tokens", [0, 1, 7])
@pytest.mark.parametrize("kind", ["any", "one", "none"])
def test_rows_are_sorted_stably_and_pairs_of_none_come_last(tokens: int, kind: str) -> None:
    ids = routed(tokens, kind)
    offsets, positions, tokens_of_rows, owners = dispatch(DispatchSpec(E), ids)
    pairs = [(t, s) for e in (*range(E), -1) for t in range(tokens) for s in range(k) if ids[t, s] == e]
    assert [array.dtype for array in (offsets, positions, tokens_of_rows, owners)] == [np.int32] * 4
    assert offsets.tolist() == [(ids.ravel() < e)[ids.ravel() >= 0].sum() for e in range(E + 1)]
    assert tokens_of_rows.tolist() == [t for t, _ in pairs]
    assert owners.tolist() == [ids[pair] if ids[pair] >= 0 else E - 1 for pair in pairs]
    for row, pair in enumerate(pairs):
        assert positions[pair] == (row if ids[pair] >= 0 else -1)


@pytest.mark.parametrize("wrong", [-2, E])
def test_an_id_out_of_range_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match="expected -1 to 3"):
        dispatch(DispatchSpec(E), np.array([[wrong]], np.int32))


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_an_expert_over_dispatched_rows_is_what_the_loop_computes(tokens: int) -> None:
    generator = np.random.default_rng(0)
    x, w = generator.normal(size=(tokens, 3)), generator.normal(size=(tokens, k))
    weights, bias = generator.normal(size=(E, 3, 2)), generator.normal(size=(E, 2))
    ids = routed(tokens, "any")
    offsets, positions, tokens_of_rows, _ = dispatch(DispatchSpec(E), ids)
    rows = grouped_matmul(ProductSpec(), x[tokens_of_rows], weights, offsets, bias)
    assert not rows[offsets[E] :].any()
    expected = np.zeros((tokens, 2))
    for token, slot in np.ndindex(tokens, k):
        expert = ids[token, slot]
        if expert >= 0:
            expected[token] += w[token, slot] * (x[token] @ weights[expert] + bias[expert])
    np.testing.assert_allclose(combine(rows, w, positions), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16", "int8"])
def test_grouped_matmul_rounds_its_rows(arithmetic: Arithmetic) -> None:
    generator = np.random.default_rng(0)
    spec = ProductSpec(arithmetic=arithmetic)
    x, weights, offsets = generator.normal(size=(5, 8)), generator.normal(size=(2, 8, 3)), np.array([0, 2, 4])
    expected = grouped_matmul(ProductSpec(), rounded_rows(spec, x), weights, offsets)
    np.testing.assert_array_equal(grouped_matmul(spec, x, weights, offsets), expected)


@pytest.mark.parametrize("wrong", [(1, 2, 3), (0, 3, 2), (0, 2, 6)])
def test_offsets_that_do_not_ascend_within_the_rows_are_refused(wrong: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="ascend from 0 to at most 5"):
        grouped_matmul(ProductSpec(), np.ones((5, 8)), np.ones((2, 8, 3)), np.array(wrong))


def test_what_a_row_of_no_expert_holds_does_not_matter() -> None:
    rows, positions = np.array([[1.0], [np.nan]]), np.array([[0, -1]], np.int32)
    np.testing.assert_array_equal(combine(rows, np.array([[2.0, np.nan]]), positions), [[2.0]])


@pytest.mark.parametrize("wrong", [-2, 3])
def test_a_position_out_of_range_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match="expected -1 to 2"):
        combine(np.ones((3, 1)), np.ones((1, 1)), np.array([[wrong]]))


def test_narrow_floats_are_summed_in_float32() -> None:
    rows = np.array([[2048.0], [1.0], [1.0]], np.float16)
    y = combine(rows, np.ones((1, 3), np.float16), np.array([[0, 1, 2]]))
    assert y.dtype == np.float16 and y == 2050
