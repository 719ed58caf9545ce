"""Softmax and the normalisations of rows, emulated, against numpy."""

from __future__ import annotations

import numpy as np

from moec.targets.gpu.kernels.normalization import normalize
from moec.targets.gpu.kernels.row_share import RowLayout
from moec.targets.gpu.kernels.softmax import SOFTMAX, softmax
from moec.targets.tvm.heavy.rows import RowProblem

from ....products import thinned
from ...cuda.kernels.kernel_runner import build
from ...cuda.kernels.layers import DTYPES, undefined

RANDOM = np.random.default_rng(0)
ROWS = (0, 1, 9)
LAYOUTS = {
    "a warp per row": (RowLayout(40, "float32"), 40, 1e-6),
    "one element at a time": (RowLayout(1023, "bfloat16"), 1023, 4e-3),
    "a block per row": (RowLayout(1100, "float16"), 1100, 5e-4),
    "any length": (RowLayout(None, "float32"), 300, 1e-6),
}


def _rows(count: int, size: int, dtype: str) -> np.ndarray:
    return (3 + RANDOM.standard_normal((count, size), np.float32)).astype(DTYPES[dtype])


def _assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    scale = float(np.abs(expected).max(initial=0)) or 1.0
    np.testing.assert_allclose(actual.astype(np.float64) / scale, expected / scale, rtol=0, atol=tolerance)


def _softmax(x: np.ndarray) -> np.ndarray:
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


@thinned("name", LAYOUTS, 2)
def test_softmax(name):
    layout, size, tolerance = LAYOUTS[name]
    kernel = build(softmax(layout))
    for count in ROWS:
        x = _rows(count, size, layout.dtype)
        _assert_close(kernel(x, undefined(x.shape, layout.dtype)), _softmax(x.astype(np.float64)), tolerance)


def test_softmax_of_what_is_not_finite():
    kernel = build(softmax(RowLayout(40, "float32")))
    x = _rows(5, 40, "float32")
    x[0, 7], x[1, 3], x[2, :], x[3, 4] = np.nan, np.inf, -np.inf, -np.inf
    y = kernel(x, undefined(x.shape, "float32"))
    assert np.isnan(y[:3]).all() and y[3, 4] == 0
    _assert_close(y[3:], _softmax(x[3:].astype(np.float64)), 1e-6)


@thinned("name, centred", list(zip(LAYOUTS, [False, True, True, False], strict=True)), 2)
def test_normalisation(name, centred):
    layout, size, tolerance = LAYOUTS[name]
    types = ["float32", "float16"] if centred else [layout.dtype]
    kernel = build(normalize(layout, 1e-3, centred, *types), watch=layout.warps > 1)
    scale, bias = (RANDOM.standard_normal(size, np.float32).astype(DTYPES[dtype]) for dtype in (types[0], types[-1]))
    for count in ROWS:
        x = _rows(count, size, layout.dtype)
        parameters = [scale, bias] if centred else [scale]
        y = kernel(x, *parameters, undefined(x.shape, layout.dtype))
        wide = x.astype(np.float64)
        from_mean = wide - wide.mean(axis=-1, keepdims=True) if centred else wide
        expected = from_mean / np.sqrt((from_mean**2).mean(axis=-1, keepdims=True) + 1e-3) * scale.astype(np.float64)
        _assert_close(y, expected + (bias.astype(np.float64) if centred else 0), tolerance)


def test_what_cannot_be_loaded_has_a_reason():
    assert SOFTMAX.why_not(RowProblem(40, "float16"), "sm_80") is None
    assert "float64" in SOFTMAX.why_not(RowProblem(40, "float64"), "sm_80")
