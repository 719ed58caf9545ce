"""Numbers that kernels move: counted in their TIR, and as estimates use them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.kernel_sizes import kernel_sizes, tensor_bytes
from moec.ir.text import parse_model

GRAPH = """<ir_version: 11, opset_import: ["" : 24]>
g (int64[T] ids, int64[T] others, float16[50,24] table, float16[24] scale)
    => (float16[T,24] looked, float16[T,24] normed, float16[24,T] turned, float16[T] largest) {
   looked = Gather (table, others)
   rows = Gather (table, ids)
   normed = RMSNormalization (rows, scale)
   turned = Transpose (rows)
   last = Constant <value_ints = [1]> ()
   largest = ReduceMax <keepdims = 0> (rows, last)
}"""
MOVED = {
    # One id for each row, and as many rows of the table as there are ids; rows of the result.
    "gather": lambda T: T * 8 + min(T, 50) * 48 + T * 48,
    # The same rows, which are stored for the kernels that follow and normalised, with one scale for all.
    "gather_rms_norm": lambda T: T * 8 + min(T, 50) * 48 + 2 * T * 48 + 48,
    "transpose": lambda T: 2 * T * 48,
    "reducemax": lambda T: T * 48 + T * 2,
}
"""Bytes by kernel and number of tokens."""


@pytest.fixture
def kernels(program_of):
    model = parse_model(GRAPH)
    constants = {"table": np.zeros((50, 24), np.float16), "scale": np.zeros(24, np.float16)}
    for value in [constant for constant in model.graph.inputs if constant.name in constants]:
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(constants[value.name], name=value.name)
        model.graph.register_initializer(value)
    return {kernel.name: kernel for kernel in program_of(model).kernels}


def test_tensors_are_moved_once_and_of_a_table_what_is_looked_up(kernels):
    assert kernels.keys() >= MOVED.keys()
    for name, moved in MOVED.items():
        kernel = kernels[name]
        assert kernel.sized_work.operations == "0"
        parameters = [
            {"name": parameter.name, "dtype": parameter.dtype, "shape": parameter.shape}
            for parameter in kernel.parameters
        ]
        for T in (1, 7, 30, 1000):
            sizes = kernel_sizes({"sizes": kernel.sizes}, {"T": T}, name)
            actual = tensor_bytes(parameters, kernel.sized_work.moved, sizes, name)
            # Incomplete blocks of threads count as complete ones, which matters only for small T.
            assert actual == pytest.approx(moved(T), rel=0.02) or T < 1000


def test_calls_are_counted_where_one_is_of_several_nodes(program_of):
    text = """<ir_version: 11, opset_import: ["" : 24]>
    g (float[T,8] x, float[T,8] y) => (float[T,8] a, float[T,8] b) {
       n = Neg (x)
       a = Exp (n)
       m = Neg (y)
       b = Exp (m)
    }"""
    (kernel,) = program_of(parse_model(text)).kernels
    assert (kernel.calls, len(kernel.nodes)) == (2, 4)
