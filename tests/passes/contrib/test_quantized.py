"""MatMulNBits against onnxruntime, and how its weights are stored."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moec.ir.dialect import LinearSpec, spec_of

N = 8


def packed(bits: int, K: int, block_size: int, zero_points: bool) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(K)
    blocks = -(-K // block_size)
    constants = {"w": generator.integers(0, 256, (N, blocks, block_size * bits // 8), dtype=np.uint8)}
    constants["s"] = generator.uniform(0.01, 0.1, N * blocks).astype(np.float32)
    if zero_points:
        constants["z"] = generator.integers(0, 256, N * -(-blocks * bits // 8), dtype=np.uint8)
    return constants


def product(bits: int, K: int, block_size: int, zero_points: bool = False, rest: str = "", level: int = 0) -> str:
    attributes = f"K = {K}, N = {N}, bits = {bits}, block_size = {block_size}, accuracy_level = {level}"
    arguments = "x, w, s, z" if zero_points else "x, w, s"
    text = f"(float[B,T,{K}] x) => (float[B,T,{N}] y) {{ y = com.microsoft.MatMulNBits"
    return f"{text} <{attributes}> ({arguments}{rest}) }}"


@pytest.mark.parametrize(
    ("bits", "stored", "with_zeros"), [(2, "INT4", "UINT4"), (4, "INT4", "UINT4"), (8, "INT8", "UINT8")]
)
@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize(("K", "block_size"), [(64, 32), (64, 64), (48, 32), (96, 32)])
def test_float_activations(decompose, normal, bits, stored, with_zeros, zero_points, K, block_size):
    constants = packed(bits, K, block_size, zero_points)
    model = decompose(product(bits, K, block_size, zero_points), {"x": normal(2, 3, K)}, constants, 1e-4)
    weight, linear = model.graph
    assert linear.op_type == "Linear" and weight.op_type == "DequantizeLinear"
    assert spec_of(linear, LinearSpec) == LinearSpec()
    assert weight.inputs[0].dtype == ir.DataType[with_zeros if zero_points else stored]
    assert tuple(weight.inputs[0].shape) == (N, K)
    assert [weight.attributes.get_int(name) for name in ("axis", "block_size")] == [1, block_size]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize(("K", "block_size"), [(64, 32), (48, 32)])
def test_int8_activations(decompose, normal, bits, zero_points, K, block_size):
    constants = packed(bits, K, block_size, zero_points)
    text = product(bits, K, block_size, zero_points, level=4)
    model = decompose(text, {"x": normal(2, 3, K)}, constants, 1e-5)
    _, linear = model.graph
    assert spec_of(linear, LinearSpec) == LinearSpec(arithmetic="int8", activation_group=block_size)


@pytest.mark.parametrize("level", [0, 4])
def test_bias(decompose, normal, level):
    constants = packed(4, 64, 32, False) | {"b": normal(N)}
    decompose(product(4, 64, 32, rest=', "", "", b', level=level), {"x": normal(2, 3, 64)}, constants, 1e-5)


def test_half_precision(decompose, normal):
    text = product(4, 64, 32).replace("float[", "float16[")
    constants = packed(4, 64, 32, False)
    constants["s"] = constants["s"].astype(np.float16)
    model = decompose(text, {"x": normal(2, 3, 64).astype(np.float16)}, constants, 2e-3)
    assert [node.op_type for node in model.graph] == ["Cast", "DequantizeLinear", "Linear", "Cast"]


def test_weights_are_unpacked_when_they_are_read(decompose, normal):
    model = decompose(product(4, 64, 32), {"x": normal(2, 3, 64)}, packed(4, 64, 32, False), 1e-5)
    weight = next(node for node in model.graph if node.op_type == "DequantizeLinear")
    assert all(isinstance(value.const_value, ir.LazyTensor) for value in weight.inputs)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("level", [0, 4])
def test_zero_points_between_integers(decompose, normal, bits, level):
    """DequantizeLinear has no such zero points: the weights are stored decoded. Activations are not rounded then."""
    constants = packed(bits, 48, 32, False)
    constants["z"] = np.random.default_rng(1).uniform(0, 2**bits - 1, constants["s"].shape).astype(np.float32)
    model = decompose(product(bits, 48, 32, True, level=level), {"x": normal(2, 3, 48)}, constants, 1e-4)
    (linear,) = model.graph
    assert linear.op_type == "Linear" and spec_of(linear, LinearSpec) == LinearSpec()
    assert isinstance(linear.inputs[1].const_value, ir.LazyTensor)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_a_packed_table(decompose, bits, zero_points, tied):
    """Alone, and as the weight of a product of which another shape is given."""
    constants = packed(bits, 64, 32, zero_points)
    constants["s"] = constants["s"].reshape(N, 2)
    flat = constants["w"].reshape(N, -1)
    names = "t, ids, s, z" if zero_points else "t, ids, s"
    reshape = "t = Reshape (w, shape) " if tied else ""
    if tied:
        constants["shape"] = np.array(flat.shape)
    else:
        constants["t"] = flat
        del constants["w"]
    if zero_points:
        constants["z"] = constants["z"].reshape(N, -1)
    attributes = f"bits = {bits}, block_size = 32, gather_axis = 0, quantize_axis = 1"
    text = f"{{ {reshape}y = com.microsoft.GatherBlockQuantized <{attributes}> ({names}) }}"
    ids = np.array([[0, 7, 3], [3, 1, 1]])
    model = decompose(f"(int64[B,T] ids) => (float[B,T,64] y) {text}", {"ids": ids}, constants)
    assert [node.op_type for node in model.graph][-2:] == ["DequantizeLinear", "Gather"]
