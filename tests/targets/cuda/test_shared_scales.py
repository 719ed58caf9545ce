"""Matrices in fp8 that have the same scales for 128 neighbouring outputs, and others."""

from __future__ import annotations

import numpy as np
import pytest

from moec.ir.weights.encode import Encoded
from moec.targets.cuda.shared_scales import with_shared_scales
from moec.targets.gpu.kernels.fp8_rows import FP8
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.gpu.kernels.packed_format import PackedFormat

PROBLEM = GroupedProblem(2, 256, 200, dtype=FP8, stored=PackedFormat("fp8", 128))


def _matrix(dtype: type = np.float32) -> Encoded:
    """A matrix [inputs, outputs] with scales [groups, outputs] in blocks, of which the last one is not full."""
    blocks = np.random.default_rng(0).random((2, 2)) + 1
    return Encoded(np.zeros((256, 200), np.uint8), np.repeat(blocks, 128, axis=1)[:, :200].astype(dtype))


def _shares(*scales: np.ndarray, problem: GroupedProblem = PROBLEM) -> bool:
    parts = [_matrix(), *(_matrix()._replace(scale=scale) for scale in scales)]
    return with_shared_scales(problem, lambda expert: parts if expert else parts[:1]).shares_scales


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_blocks_are_found(dtype):
    assert _shares() and _shares(_matrix(dtype).scale)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ((0, 5), 3),
        ((1, 199), 3),
        ((1, slice(128, None)), np.inf),
        ((1, slice(None)), np.nan),
        ((0, slice(60, 70)), -0.0),
    ],
)
def test_other_scales_are_loaded_for_each_column(place, value):
    scale = _matrix().scale
    scale[0, :128] = 0 if value == 0 else scale[0, :128]
    scale[place] = value
    assert not _shares(scale)


def test_one_scale_for_all_numbers_is_shared():
    assert _shares(np.full((1, 200), 0.5, np.float32))


def test_other_problems_do_not_share():
    assert not _shares(problem=GroupedProblem(2, 256, 200, stored=PackedFormat("fp8", 128)))
    assert not with_shared_scales(GroupedProblem(2, 256, 200), lambda _: [Encoded(np.zeros((256, 200)))]).shares_scales
