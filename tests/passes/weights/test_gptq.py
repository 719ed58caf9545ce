from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moec.ir.weights.encode import Encoded, encode
from moec.ir.weights.format import WeightFormat
from moec.passes.weights import gptq as gptq_module
from moec.passes.weights.gptq import gptq, importance_of
from moec.passes.weights.scale_search import nearest

from ..profiles import rows_of
from .measured import FORMATS, errors_of, moment_of, weight_of

_INPUTS, _OUTPUTS = 256, 96
_NO_WORSE = 1 + 1e-4


def digest(result: Encoded) -> str:
    return hashlib.sha256(b"".join(table.tobytes() for table in result if table is not None)).hexdigest()


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_the_error_is_at_most_half_of_that_of_rounding_to_nearest(form: WeightFormat) -> None:
    weight, rows = weight_of(_INPUTS, _OUTPUTS), rows_of(_INPUTS, 2000)
    result, plain = gptq(weight, form, moment_of(rows)), encode(weight, form, 0)
    for actual, other in zip(result, plain, strict=True):
        assert (actual is None) == (other is None)
        assert actual is None or other is None or (actual.shape, actual.dtype) == (other.shape, other.dtype)
    for seen in (rows, rows_of(_INPUTS, 1000, seed=9)):
        lost, before = (np.linalg.norm(errors_of(weight, one, form, seen)) for one in (result, plain))
        assert lost < 0.5 * before


@pytest.mark.parametrize("count", [3, 40, 1000])
@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_no_output_is_worse_than_rounded_to_nearest_with_the_same_scales(form: WeightFormat, count: int) -> None:
    weight, rows = weight_of(128, 300), rows_of(128, count)
    moment = moment_of(rows)
    lost = errors_of(weight, gptq(weight, form, moment), form, rows)
    before = errors_of(weight, nearest(weight, form, importance_of(moment)), form, rows)
    assert (lost <= before * _NO_WORSE + 1e-4).all()


@pytest.mark.parametrize("name", ["int4", "int3", "int2"])
@pytest.mark.parametrize("zero_points", [False, True])
def test_scales_are_fitted_to_what_was_rounded_with_them(name, zero_points: bool, monkeypatch) -> None:
    weight, rows, form = weight_of(_INPUTS, _OUTPUTS), rows_of(_INPUTS, 2000), WeightFormat(name, 32, zero_points)
    lost = []
    for fits in (0, 1, 2):
        monkeypatch.setattr(gptq_module, "_FITS", fits)
        lost.append(np.linalg.norm(errors_of(weight, gptq(weight, form, moment_of(rows)), form, rows)))
    assert lost[2] < lost[1] < lost[0]


@pytest.mark.parametrize("factor", [1e-30, 1e-3, 1e30])
def test_the_size_of_a_moment_does_not_matter(factor: float) -> None:
    weight, moment, form = weight_of(128, 20), moment_of(rows_of(128, 500)).astype(np.float64), WeightFormat("int4", 32)
    actual, expected = (gptq(weight, form, times * moment) for times in (factor, 1))
    rows = rows_of(128, 500)
    np.testing.assert_allclose(
        errors_of(weight, actual, form, rows).sum(), errors_of(weight, expected, form, rows).sum(), rtol=0.01
    )


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_without_inputs_scales_are_searched_alone(form: WeightFormat) -> None:
    weight = weight_of(128, 20)
    expected = digest(nearest(weight, form, np.ones(128)))
    assert digest(gptq(weight, form, np.zeros((128, 128)))) == expected
    assert digest(gptq(weight, form, np.zeros((128, 128), np.float32))) == expected


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    weight, rows, form = weight_of(128, 20), rows_of(128, 500), WeightFormat("int4", 32)
    rows[:, 64:] = 0
    actual, plain = gptq(weight, form, moment_of(rows)), encode(weight, form, 0)
    assert errors_of(weight, actual, form, rows).sum() < 0.5 * errors_of(weight, plain, form, rows).sum()
    dead = np.eye(128)[64:]
    assert errors_of(weight, actual, form, dead).sum() < 1.5 * errors_of(weight, plain, form, dead).sum()


def test_a_moment_is_dampened_until_it_has_a_factor() -> None:
    moment = np.eye(128) + 0.05 * np.diag(np.full(127, -11.0), 1) + 0.05 * np.diag(np.full(127, -11.0), -1)
    assert np.linalg.eigvalsh(moment)[0] < -0.05
    weight, form = weight_of(128, 20), WeightFormat("int4", 32)
    assert np.isfinite(errors_of(weight, gptq(weight, form, moment), form, np.eye(128))).all()


@pytest.mark.parametrize(
    ("place", "number", "message"),
    [
        ((3, 4), np.nan, "is negative or not finite"),
        ((3, 3), np.inf, "is negative or not finite"),
        ((3, 3), -1e3, "is negative or not finite"),
        ((3, 4), 1e6, "has negative eigenvalues"),
    ],
)
def test_what_is_no_moment_is_refused(place, number, message) -> None:
    moment = np.eye(64)
    moment[place] = moment[place[::-1]] = number
    with pytest.raises(ValueError, match=message):
        gptq(weight_of(64, 3), WeightFormat("int4", 32), moment)


@pytest.mark.parametrize("moment", [np.eye(64), np.zeros((64, 64))], ids=["measured", "not"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(number: float, moment: np.ndarray) -> None:
    weight = weight_of(64, 3)
    weight[5, 1] = number
    with pytest.raises(ValueError, match="it holds an infinity or a NaN, which int4 cannot"):
        gptq(weight, WeightFormat("int4", 32), moment)


def test_an_output_is_rounded_alone() -> None:
    weight, moment, form = weight_of(128, 20), moment_of(rows_of(128, 500)), WeightFormat("int3", 32)
    whole, alone = gptq(weight, form, moment), gptq(weight[:, 3:4], form, moment)
    np.testing.assert_array_equal(whole.data[:, 3:4], alone.data)


def _digests() -> list[str]:
    weight, moment = weight_of(320, 300), moment_of(rows_of(320, 2000)[:, :320])
    return [digest(gptq(weight, form, moment)) for form in (WeightFormat("int4", 32), WeightFormat("fp8", 128))]


def test_bits_are_the_same_for_any_number_of_threads() -> None:
    actual = set()
    for threads in "14":
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        code = "from tests.passes.weights.test_gptq import _digests; print(_digests())"
        root = Path(__file__).parents[3]
        process = subprocess.run(
            [sys.executable, "-c", code], cwd=root, env=environment, check=True, capture_output=True, text=True
        )
        actual.add(process.stdout)
    assert len(actual) == 1
