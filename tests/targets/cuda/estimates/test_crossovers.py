"""Estimated crossovers: the numbers of tokens from which the next way is used before anything was measured."""

from __future__ import annotations

import numpy as np
import pytest

from moec.targets.base import SizeRange
from moec.targets.cuda.estimates.crossovers import FEW_TOKENS, block_heights, few_tokens, one_launch_tokens

MEGABYTE = 1e6


@pytest.mark.parametrize(
    ("experts", "slots", "expert_bytes", "tokens"),
    [
        (8, 2, 352 * MEGABYTE, 1),
        (8, 2, 3.1 * MEGABYTE, 5),
        (32, 4, 13.2 * MEGABYTE, 2),
        (128, 8, 9.4 * MEGABYTE, 2),
        (1, 8, 0.5 * MEGABYTE, 3),  # 24 pairs read the same expert, 23 of them needlessly
        (2, 2, 0.05 * MEGABYTE, FEW_TOKENS),
        (8, None, 352 * MEGABYTE, FEW_TOKENS),
    ],
)
def test_pairs_end_where_they_read_more_than_dispatch_is_worth(experts, slots, expert_bytes, tokens):
    assert few_tokens(experts, slots, expert_bytes) == tokens


def test_experts_in_use_are_those_of_balanced_routing():
    """The expected number of experts in use is that of random draws: 16 tokens with 8 of 128 experts each."""
    random = np.random.default_rng(0)
    drawn = [len({*np.concatenate([random.permutation(128)[:8] for _ in range(16)])}) for _ in range(200)]
    assert 16 * 8 - np.mean(drawn) == pytest.approx(16 * 8 - 128 * (1 - (1 - 8 / 128) ** 16), abs=1)
    assert few_tokens(128, 8, 12.4 * MEGABYTE / (16 * 8 - np.mean(drawn))) in (15, 16)


@pytest.mark.parametrize(
    ("experts", "slots", "heights", "expected"),
    [
        (8, 2, (16, 64, 128), [(16, SizeRange(17, 96)), (64, SizeRange(97, 384)), (128, SizeRange(385))]),
        (2, 2, (16, 64, 128), [(16, SizeRange(17, 24)), (64, SizeRange(25, 96)), (128, SizeRange(97))]),
        (1, 1, (16, 64, 128), [(16, SizeRange(17, 24)), (64, SizeRange(25, 96)), (128, SizeRange(97))]),
        (1, 8, (16, 64, 128), [(128, SizeRange(17))]),
        (8, None, (16, 64, 128), [(128, SizeRange(17))]),
        (8, 2, (64,), [(64, SizeRange(17))]),
    ],
)
def test_tiers_cover_all_numbers_of_tokens(experts, slots, heights, expected):
    assert block_heights(experts, slots, heights, 17) == expected


def test_a_matrix_that_no_cache_holds_is_read_once():
    """Mixtral's matrices. From an average of 12 rows per expert on, blocks have 64 rows, since some experts have more
    rows than the average."""
    heights = block_heights(8, 2, (16, 64, 128), 3, 235 * MEGABYTE)
    assert heights == [(16, SizeRange(3, 48)), (64, SizeRange(49, 192)), (128, SizeRange(193))]
    assert block_heights(8, 2, (16, 64, 128), 3, 20 << 20) == block_heights(8, 2, (16, 64, 128), 3)


@pytest.mark.parametrize(("slots", "tokens"), [(8, 1024), (2, 4096), (None, 1024)])
def test_one_launch_dispatches_some_number_of_pairs(slots, tokens):
    assert one_launch_tokens(slots) == tokens
