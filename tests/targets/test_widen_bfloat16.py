"""Casts of bfloat16 in the values of variables."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from moec.runtime.tensors import to_runtime
from moec.targets.cpu.kernels.emit import Parameter, emit_kernel
from moec.targets.tvm.phases.pipeline import KERNEL_PIPELINE


def compiled(parameters, body):
    kernel = emit_kernel(parameters, body)
    module = tvm.IRModule({"kernel": kernel.with_attr("global_symbol", "kernel")})
    return tvm.tirx.build(module, target=tvm.target.Target("llvm"), pipeline=KERNEL_PIPELINE)["kernel"]


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_variable_holds_the_number_and_not_its_bits(lanes) -> None:
    def body(x, y) -> None:
        with T.serial(8 // lanes) as i:
            place = T.ramp(i * lanes, 1, lanes) if lanes > 1 else i
            number = T.bind(T.cast(x[place], f"float32x{lanes}" if lanes > 1 else "float32"))
            T.buffer_store(y, number * number, [place])

    run = compiled([Parameter("x", (8,), "bfloat16"), Parameter("y", (8,), "float32")], body)
    x, y = np.linspace(-2, 2, 8).astype(ml_dtypes.bfloat16), np.zeros(8, np.float32)
    run(to_runtime(x), to_runtime(y))
    np.testing.assert_array_equal(y, x.astype(np.float32) ** 2)


@pytest.mark.parametrize("choice", [T.Select, T.if_then_else])
def test_one_of_two_numbers_is_widened_whichever_it_is(choice) -> None:
    def body(x, y, z) -> None:
        with T.serial(8) as i:
            T.buffer_store(z, T.cast(choice(i < 4, x[i], y[i]), "float32"), [i])

    x, y, z = np.linspace(-2, 2, 8).astype(ml_dtypes.bfloat16), np.full(8, 0.5, ml_dtypes.bfloat16), np.zeros(8, "f4")
    dtypes = {"x": "bfloat16", "y": "bfloat16", "z": "float32"}
    run = compiled([Parameter(name, (8,), dtype) for name, dtype in dtypes.items()], body)
    run(*map(to_runtime, (x, y, z)))
    np.testing.assert_array_equal(z, [*x[:4].astype(np.float32), *[0.5] * 4])
