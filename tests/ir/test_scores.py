"""Elementwise scores: the bounds that passes rely on, and the names that the dialect knows."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from moec.ir.dialect import ScoreFunction
from moec.ir.scores import ELEMENTWISE, LOGITS
from moec.ir.semantics import SCORES

FAR = np.concatenate([np.linspace(-700, 700, 2001), np.linspace(-2, 2, 101)])


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_scores_of_finite_logits_lie_within_their_bounds(name):
    scores, score = SCORES[name](FAR), ELEMENTWISE[name]
    assert np.isfinite(scores).all()
    assert score.least <= scores.min() and scores.max() <= score.most


def test_the_dialect_names_every_score():
    assert {*ELEMENTWISE, *LOGITS, "softmax", "sparsemixer"} == set(get_args(ScoreFunction))
