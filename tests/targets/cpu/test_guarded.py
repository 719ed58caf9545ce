"""The guard of arrays works: who reads past the end does not get away with it."""

from __future__ import annotations

import pathlib
import signal
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from .guarded import LINE, guarded


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (7, 5), (64, 64)])
@pytest.mark.parametrize("dtype", [np.float32, np.int8, ml_dtypes.bfloat16])
def test_guarded_arrays_are_equal_aligned_and_writable(shape, dtype):
    array = np.random.default_rng(0).integers(-9, 9, shape).astype(dtype)
    copy = guarded(array)
    np.testing.assert_array_equal(copy, array)
    assert copy.dtype == array.dtype
    assert not copy.size or copy.ctypes.data % LINE == 0
    copy[...] = 1


READ = """
import ctypes, sys, numpy as np
sys.path.insert(0, {folder!r})
from guarded import guarded
array = guarded(np.zeros({size}, np.uint8))
ctypes.string_at(array.ctypes.data + {offset}, 1)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows protects pages by another call")
@pytest.mark.parametrize(("offset", "survives"), [(99, True), (127, True), (128, False)])
def test_a_byte_behind_the_last_line_cannot_be_read(offset, survives):
    script = READ.format(folder=str(pathlib.Path(__file__).parent), size=100, offset=offset)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == (0 if survives else -signal.SIGSEGV), done.stderr
