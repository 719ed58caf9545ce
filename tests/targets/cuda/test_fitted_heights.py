"""Heights of blocks by the launch model: the estimates stay if they are good, and are corrected for a GPU if not."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import pytest

from moec.targets.base import SizeRange
from moec.targets.cuda.estimates import block_heights
from moec.targets.cuda.fitted_heights import fitted_heights
from moec.targets.cuda.kernels.grouped_gemm_mma import GROUPED_GEMM_MMA
from moec.targets.cuda.kernels.grouped_gemm_wgmma import GROUPED_GEMM_WGMMA
from moec.targets.cuda.kernels.grouped_problem import GroupedProblem
from moec.targets.cuda.kernels.packed_format import PackedFormat
from moec.targets.cuda.launch_model.rows import DrawnSpread

HEIGHTS = (16, 64, 128)


def fitted(
    architecture: str, experts: int, slots: int | None, width: int, hidden: int, stored: PackedFormat | None = None
) -> tuple:
    """The estimated heights for a layer in bfloat16, and the fitted ones."""
    types = {"dtype": "bfloat16", "matrix_dtype": "bfloat16", "out_dtype": "bfloat16", "stored": stored}
    up = GroupedProblem(experts, width, hidden, 16, gated=True, gathered=True, **types)
    down = GroupedProblem(experts, hidden, width, 16, scattered=True, **types)
    estimates = tuple(block_heights(experts, slots, HEIGHTS, 17, up.matrix_bytes))

    def plan(rows: int, problem: GroupedProblem) -> object:
        kernel = GROUPED_GEMM_WGMMA if architecture == "sm_90a" and rows > 16 else GROUPED_GEMM_MMA
        return kernel.plan(dataclasses.replace(problem, block_rows=rows))

    plans = tuple(tuple(map(functools.partial(plan, rows), (up, down))) for rows, _ in estimates)
    return estimates, fitted_heights(estimates, experts, slots, plans, architecture)


@pytest.mark.parametrize(
    ("architecture", "layer"),
    [
        ("sm_90a", (128, 8, 2048, 768)),  # the estimates lose no time
        ("sm_90a", (32, 4, 2880, 2880)),
        ("sm_80", (8, 2, 64, 64)),  # launches dominate the time
        ("sm_120", (128, 8, 2048, 768)),  # the GPU's figures are not known
        ("sm_80", (8, None, 2048, 768)),
        ("sm_89", (128, 8, 2048, 768, PackedFormat("int4", 128, "float16"))),  # decoding instructions are not known
    ],
)
def test_estimates_that_lose_nothing_are_taken(architecture, layer):
    estimates, found = fitted(architecture, *layer)
    assert found == estimates


def test_where_a_multiprocessor_holds_more_of_the_lower_blocks_they_are_taken_longer():
    """Qwen3-30B-A3B's layer. An A100's multiprocessor holds two blocks of 128 rows or three of 64; that of a 4090 one
    or two. With few rows memory is the limit, and there the estimates stay."""
    for architecture, least in (("sm_80", 1537), ("sm_89", 4096)):
        estimates, found = fitted(architecture, 128, 8, 2048, 768)
        assert estimates == ((16, SizeRange(17, 384)), (64, SizeRange(385, 1536)), (128, SizeRange(1537)))
        assert found[0] == estimates[0] and found[1][0] == 64 and found[1][1].least == 385
        assert found[2][1].least == found[1][1].most + 1 > least


def test_ranges_cover_all_numbers_of_tokens_once():
    for layer in ((32, 4, 2880, 2880), (40, 8, 1536, 512)):
        estimates, found = fitted("sm_89", *layer)
        assert found != estimates
        assert found[0][1].least == 17 and found[-1][1].most is None
        for (low, first), (high, then) in itertools.pairwise(found):
            assert low < high and first.most + 1 == then.least


@pytest.mark.parametrize(("experts", "slots", "tokens", "rows"), [(8, 2, 40, 16), (16, 4, 100, 16), (4, 1, 3, 64)])
def test_a_drawn_spread_is_that_of_balanced_routing(experts, slots, tokens, rows):
    random = np.random.default_rng(0)
    draws = [np.concatenate([random.permutation(experts)[:slots] for _ in range(tokens)]) for _ in range(300)]
    counts = [np.bincount(draw, minlength=experts) for draw in draws]
    spread = DrawnSpread(tokens * slots, experts, tokens)
    assert spread.blocks(rows) == pytest.approx(np.mean([sum(-(-count // rows)) for count in counts]), abs=1)
    assert spread.used == pytest.approx(np.mean([sum(count > 0) for count in counts]), abs=1)


def test_experts_that_all_tokens_choose():
    assert DrawnSpread(80, 2, 40).blocks(16) == 2 * 3
