"""Casts of bfloat16 in the values of variables."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from moec.runtime.tensors import to_runtime
from moec.targets.cpu.kernels.emit import Parameter, emit_kernel
from moec.targets.tvm.pipeline import KERNEL_PIPELINE


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_variable_holds_the_number_and_not_its_bits(lanes) -> None:
    def body(x, y) -> None:
        with T.serial(8 // lanes) as i:
            place = T.ramp(i * lanes, 1, lanes) if lanes > 1 else i
            number = T.bind(T.cast(x[place], f"float32x{lanes}" if lanes > 1 else "float32"))
            T.buffer_store(y, number * number, [place])

    kernel = emit_kernel([Parameter("x", (8,), "bfloat16"), Parameter("y", (8,), "float32")], body)
    module = tvm.IRModule({"kernel": kernel.with_attr("global_symbol", "kernel")})
    run = tvm.tirx.build(module, target=tvm.target.Target("llvm"), pipeline=KERNEL_PIPELINE)["kernel"]
    x, y = np.linspace(-2, 2, 8).astype(ml_dtypes.bfloat16), np.zeros(8, np.float32)
    run(to_runtime(x), to_runtime(y))
    np.testing.assert_array_equal(y, x.astype(np.float32) ** 2)
