"""The 16-bit formats convert and compute as ml_dtypes and numpy do."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from .emulated import load

SOURCE = """
#include <cuda_fp16.h>
#include <cuda_bf16.h>
template <class T> void convert(T* narrow, float* wide, float* back, int count) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) { narrow[i] = T(wide[i]); back[i] = float(narrow[i]); }
}
template <class T> void widen(T* narrow, float* wide) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  wide[i] = float(narrow[i]);
}
template <class T> void compute(T* a, T* b, T* results, int count) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  results[i] = a[i] + b[i];
  results[count + i] = a[i] - b[i];
  results[2 * count + i] = a[i] * b[i];
  results[3 * count + i] = a[i] / b[i];
  results[4 * count + i] = __hmax(a[i], b[i]);
}
extern "C" __global__ void convert_half(half* n, float* w, float* b, int count) { convert(n, w, b, count); }
extern "C" __global__ void convert_bfloat16(nv_bfloat16* n, float* w, float* b, int count) { convert(n, w, b, count); }
extern "C" __global__ void widen_half(half* n, float* w) { widen(n, w); }
extern "C" __global__ void widen_bfloat16(nv_bfloat16* n, float* w) { widen(n, w); }
extern "C" __global__ void compute_half(half* a, half* b, half* r, int count) { compute(a, b, r, count); }
extern "C" __global__ void compute_bfloat16(nv_bfloat16* a, nv_bfloat16* b, nv_bfloat16* r, int count) {
  compute(a, b, r, count);
}
"""
FORMATS = {"half": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@pytest.fixture(scope="module")
def kernels():
    return load(SOURCE, *(f"{what}_{name}" for what in ("convert", "widen", "compute") for name in FORMATS))


def _bits(array: np.ndarray) -> np.ndarray:
    """The bits of 16-bit floats, with one value for all NaN."""
    return np.where(np.isnan(array.astype(np.float32)), 0x7FFF, array.view(np.uint16))


@pytest.mark.parametrize("name", FORMATS)
def test_every_short_number_is_widened_exactly(kernels, name):
    narrow = np.arange(65536, dtype=np.uint32).astype(np.uint16).view(FORMATS[name])
    wide = np.zeros(65536, np.float32)
    kernels[f"widen_{name}"](narrow, wide, grid=64, block=1024)
    np.testing.assert_array_equal(wide, narrow.astype(np.float32))


@pytest.mark.parametrize("name", FORMATS)
def test_floats_are_rounded_to_nearest_even(kernels, name):
    rng = np.random.default_rng(0)
    every = np.arange(65536, dtype=np.uint32).astype(np.uint16).view(FORMATS[name]).astype(np.float32)
    every = np.sort(every[np.isfinite(every)])
    ties = (every[1:].astype(np.float64) + every[:-1]) / 2
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.9, 65520, 1e-8, 2**-25, 3 * 2**-26, 3.4e38]
    random = rng.integers(0, 2**32, 20000, dtype=np.uint32).view(np.float32)
    wide = np.concatenate([ties.astype(np.float32), np.float32(special), random])
    narrow, back = np.zeros(len(wide), FORMATS[name]), np.zeros(len(wide), np.float32)
    kernels[f"convert_{name}"](narrow, wide, back, len(wide), grid=-(-len(wide) // 1024), block=1024)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = wide.astype(FORMATS[name])
    np.testing.assert_array_equal(_bits(narrow), _bits(expected))
    np.testing.assert_array_equal(back, narrow.astype(np.float32))


@pytest.mark.parametrize("name", FORMATS)
def test_results_are_rounded_once(kernels, name):
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(4096).astype(FORMATS[name]) for _ in range(2))
    results = np.zeros((5, 4096), FORMATS[name])
    kernels[f"compute_{name}"](a, b, results, 4096, grid=4, block=1024)
    x, y = a.astype(np.float64), b.astype(np.float64)
    exact = np.stack([x + y, x - y, x * y, x / y, np.maximum(x, y)])
    np.testing.assert_array_equal(_bits(results), _bits(exact.astype(np.float32).astype(FORMATS[name])))
