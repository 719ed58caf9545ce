from __future__ import annotations

import numpy as np
import pytest

from moec.ir.weights.encode import encode
from moec.ir.weights.format import WeightFormat
from moec.passes.weights.scale_search import nearest

from ..profiles import rows_of
from .measured import FORMATS, errors_of, weight_of

_NO_WORSE = 1 + 1e-6


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_searched_scales_lose_less_of_what_counts(form: WeightFormat) -> None:
    weight, importance = weight_of(192, 160), np.exp(np.random.default_rng(3).normal(size=192))
    result, plain = nearest(weight, form, importance), encode(weight, form, 0)
    for actual, other in zip(result, plain, strict=True):
        assert (actual is None) == (other is None)
        assert actual is None or other is None or (actual.shape, actual.dtype) == (other.shape, other.dtype)
    rows = np.diag(np.sqrt(importance))
    lost, before = errors_of(weight, result, form, rows), errors_of(weight, plain, form, rows)
    blocks = np.arange(0, 160, 128 if form == WeightFormat("fp8", 128) else 1)
    assert (np.add.reduceat(lost**2, blocks) <= np.add.reduceat(before**2, blocks) * _NO_WORSE).all()
    assert np.linalg.norm(lost) < np.linalg.norm(before)


@pytest.mark.parametrize("form", [WeightFormat("int2", 32), WeightFormat("int2", 32, True)], ids=str)
def test_few_levels_gain_a_lot(form: WeightFormat) -> None:
    weight, rows = weight_of(256, 64), np.eye(256)
    actual = errors_of(weight, nearest(weight, form, np.ones(256)), form, rows)
    assert np.linalg.norm(actual) < 0.92 * np.linalg.norm(errors_of(weight, encode(weight, form, 0), form, rows))


def test_blocks_of_fp8_keep_one_scale() -> None:
    form = WeightFormat("fp8", 128)
    scale = nearest(weight_of(256, 300), form, rows_of(256, 1)[0] ** 2).scale
    assert scale is not None
    for start in (0, 128, 256):
        assert (scale[:, start : start + 128] == scale[:, start : start + 1]).all()
    assert len(np.unique(scale)) == 6


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_zeros_stay_zeros(form: WeightFormat) -> None:
    weight = np.zeros((64, 5), np.float32)
    assert not errors_of(weight, nearest(weight, form, np.ones(64)), form, np.eye(64)).any()


def test_the_last_group_may_be_shorter() -> None:
    weight, form = weight_of(80, 3), WeightFormat("int4", 32)
    actual = nearest(weight, form, np.ones(80))
    assert actual.scale is not None and actual.scale.shape == (3, 3)
    assert (
        errors_of(weight, actual, form, np.eye(80)) <= errors_of(weight, encode(weight, form, 0), form, np.eye(80))
    ).all()


@pytest.mark.parametrize(
    ("number", "form", "message"),
    [
        (np.nan, WeightFormat("int4", 32), "it holds an infinity or a NaN, which int4 cannot"),
        (np.inf, WeightFormat("mxfp4", 32), "it holds an infinity or a NaN, which mxfp4 cannot"),
        (3e38, WeightFormat("int4", 32), "needs a scale beyond the range of float16"),
    ],
)
def test_numbers_that_a_format_cannot_hold_are_refused(number, form, message) -> None:
    weight = weight_of(64, 3)
    weight[5, 1] = number
    with pytest.raises(ValueError, match=message):
        nearest(weight, form, np.ones(64))
