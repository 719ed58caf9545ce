"""Kernels in benchmark results: their calls and their work."""

from __future__ import annotations

import types

import numpy as np

from moec.common.work import Argument, Work
from moec.tools.bench import _kernel_work


def test_calls_of_a_kernel_add_up_and_what_computes_sizes_is_left_out():
    kernels = {"softmax_1": types.SimpleNamespace(work=None)}
    few, more = ([Argument(np.zeros(size, np.float32), constant=False)] for size in (3, 5))

    def watch_kernels(inputs, watch):
        for name, arguments in [("sizes", few), ("softmax_1", few), ("softmax_1", more)]:
            watch(name, arguments)

    probe = types.SimpleNamespace(watch_kernels=watch_kernels)
    compiled = types.SimpleNamespace(kernels=kernels, probe=probe)
    assert _kernel_work(compiled, {}) == {"softmax_1": Work(None, 4 * (3 + 5))}
