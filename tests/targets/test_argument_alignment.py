"""Inputs may begin at any multiple of 16 bytes: kernels read them where they lie."""

from __future__ import annotations

import numpy as np
import pytest

from moec.runtime.tensors import to_runtime

MODEL = """agraph (float[1,4,T,32] past, float[1,4,T,32] new, float[R,64] x, float[64] scale) =>
    (float[1,4,T,32] attended, float[1,4,U,32] present, float[R,64] normal, float[R,64] soft, float[R,48] product,
     float[R,64] sum, float[R,R] batched) <float[64,48] weight = {WEIGHT}> {
    present = Concat <axis = 2> (past, new)
    attended = Attention (new, past, past)
    normal = RMSNormalization (x, scale)
    soft = Softmax (x)
    product = MatMul (x, weight)
    sum = Add (x, scale)
    turned = Transpose <perm = [1, 0]> (x)
    batched = MatMul (x, turned)
}"""


def beginning_at(offset: int, array: np.ndarray) -> np.ndarray:
    """A copy whose address is ``offset`` behind a multiple of 64."""
    memory = np.empty(array.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.fixture
def model(program_of, runner_of):
    numbers = np.random.default_rng(1).standard_normal(64 * 48, dtype=np.float32)
    return runner_of(program_of(MODEL.replace("WEIGHT", ", ".join(map(str, numbers)))))


def test_results_do_not_depend_on_where_inputs_lie(model):
    random = np.random.default_rng(0)
    shapes = {"past": (1, 4, 37, 32), "new": (1, 4, 37, 32), "x": (19, 64), "scale": (64,)}
    inputs = {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    expected = model({name: beginning_at(0, array) for name, array in inputs.items()})
    for offset in (16, 32, 48):
        moved = {name: beginning_at(offset, array) for name, array in inputs.items()}
        assert all(to_runtime(array).data_ptr() == array.ctypes.data for array in moved.values())
        for name, actual in model(moved).items():
            np.testing.assert_array_equal(actual, expected[name], err_msg=f"{name} at {offset}")
