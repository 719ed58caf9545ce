"""Kernels that run in a fixed order touch nothing but their results."""

from __future__ import annotations

import numpy as np
import tvm

from moec.runtime.tensors import to_runtime
from moec.targets.tvm.kernels.serial_kernels import top_k
from moec.targets.tvm.phases.pipeline import KERNEL_PIPELINE


def test_what_lies_behind_the_best_of_the_last_row_stays():
    """Some elements push the last one of a full list out, others are pushed out at once."""
    module = tvm.IRModule({"kernel": top_k("float32", True).with_attr("global_symbol", "kernel")})
    run = tvm.tirx.build(module, target=tvm.target.Target("llvm"), pipeline=KERNEL_PIPELINE)["kernel"]
    source = np.array([[1, 2, 3, 4, 5], [1, 5, 2, 4, 3]], np.float32)
    values, indices = np.full((3, 2), 7, np.float32), np.full((3, 2), 7, np.int64)
    run(*map(to_runtime, (source, values[:2], indices[:2])))
    np.testing.assert_array_equal(values, [[5, 4], [5, 4], [7, 7]])
    np.testing.assert_array_equal(indices, [[4, 3], [1, 3], [7, 7]])
