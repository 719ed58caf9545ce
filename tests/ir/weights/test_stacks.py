"""Stacks of experts: parts made one at a time."""

import hashlib
import io

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from moec.ir.weight_hashes import content_hash
from moec.ir.weights.stacks import ExpertStack, expert_data, packed_parts


def stack_of(array: np.ndarray, dtype: ir.DataType, read: list[int] | None = None) -> ExpertStack:
    def load(expert: int) -> np.ndarray:
        if read is not None:
            read.append(expert)
        return array[expert]

    return ExpertStack("w", dtype, array.shape, load)


def value_of(tensor: ir.TensorProtocol) -> ir.Value:
    return ir.Value(name="w", const_value=tensor)


def test_reading_one_expert_makes_no_other():
    array, read = np.arange(24, dtype=np.float32).reshape(4, 2, 3), []
    value = value_of(stack_of(array, ir.DataType.FLOAT, read))
    np.testing.assert_array_equal(expert_data(value, 2), array[2])
    assert read == [2]


def test_the_whole_is_the_parts():
    array = np.arange(24, dtype=np.float16).reshape(4, 2, 3)
    stack = stack_of(array, ir.DataType.FLOAT16)
    np.testing.assert_array_equal(stack.numpy(), array)
    assert stack.tobytes() == b"".join(packed_parts(stack)) == array.tobytes()
    file = io.BytesIO()
    stack.tofile(file)
    assert file.getvalue() == array.tobytes()


@pytest.mark.parametrize("inner", [5, 6])
def test_narrow_elements_are_packed_as_in_one_tensor(inner):
    """With 5 elements per expert, bytes hold the end of one expert and the begin of the next."""
    array = np.random.default_rng(0).integers(-8, 8, (3, inner)).astype(ml_dtypes.int4)
    stack = stack_of(array, ir.DataType.INT4)
    whole = ir.Tensor(array, dtype=ir.DataType.INT4)
    assert b"".join(packed_parts(stack)) == whole.tobytes()
    assert content_hash(stack) == content_hash(whole) == hashlib.sha256(whole.tobytes()).hexdigest()[:16]


def test_an_expert_of_another_shape_is_refused():
    stack = ExpertStack("w", ir.DataType.FLOAT, (2, 3), lambda expert: np.zeros(3 + expert, np.float32))
    assert stack.expert(0).shape == (3,)
    with pytest.raises(ValueError, match=r"stack w: expert 1 is float32\[4\]; expected float32\[3\]"):
        stack.numpy()


def test_experts_of_other_constants_are_views():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.shares_memory(expert_data(value_of(ir.tensor(array)), 1), array)


def test_a_computed_value_has_no_experts():
    with pytest.raises(ValueError, match="'w' is computed when the model runs"):
        expert_data(ir.Value(name="w"), 0)


@pytest.mark.parametrize("inner", [5, 6])
def test_experts_of_packed_constants(inner):
    array = np.random.default_rng(0).integers(-8, 8, (3, inner)).astype(ml_dtypes.int4)
    stored = np.frombuffer(ir.Tensor(array, dtype=ir.DataType.INT4).tobytes(), np.uint8)
    packed = value_of(ir.PackedTensor(stored, ir.DataType.INT4, shape=array.shape))
    for expert in range(3):
        np.testing.assert_array_equal(expert_data(packed, expert), array[expert])
