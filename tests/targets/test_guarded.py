"""The guard of arrays: a read past an edge ends the process."""

from __future__ import annotations

import signal
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from .guarded import LINE, guarded


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (7, 5), (64, 64)])
@pytest.mark.parametrize("dtype", [np.float32, np.int8, ml_dtypes.bfloat16])
def test_guarded_arrays_are_equal_aligned_and_writable(shape, dtype, before):
    array = np.random.default_rng(0).integers(-9, 9, shape).astype(dtype)
    copy = guarded(array, before=before)
    np.testing.assert_array_equal(copy, array)
    assert copy.dtype == array.dtype
    assert not copy.size or copy.ctypes.data % LINE == 0
    copy[...] = 1


READ = """
import ctypes, numpy as np
from tests.targets.guarded import guarded
array = guarded(np.zeros(100, np.uint8), {line}, before={before})
ctypes.string_at(array.ctypes.data + {offset}, 1)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows protects pages by another call")
@pytest.mark.parametrize(
    ("line", "before", "offset", "survives"),
    [
        (LINE, False, 127, True),
        (LINE, False, 128, False),
        (1, False, 99, True),
        (1, False, 100, False),
        (1, True, 0, True),
        (1, True, -1, False),
    ],
)
def test_a_byte_beside_the_lines_cannot_be_read(line, before, offset, survives):
    script = READ.format(line=line, before=before, offset=offset)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == (0 if survives else -signal.SIGSEGV), done.stderr
