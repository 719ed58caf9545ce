"""Operators with quantised weights against onnxruntime, and their unpacking against plain loops."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from moec.ir.contrib_quantized import dequantize, unpack
from moec.ir.interpreter import run

E, D, F = 4, 64, 32


def against_onnxruntime(node: str, inputs: dict[str, np.ndarray], tolerance: float) -> None:
    """Weights are constants: onnxruntime quantises no activations for weights that it cannot pack beforehand."""
    import onnxruntime

    names = {np.dtype(np.float32): "float", np.dtype(np.uint8): "uint8"}
    constants = {name: array for name, array in inputs.items() if name not in ("x", "r")}
    inputs = {name: array for name, array in inputs.items() if name not in constants}
    arguments = ", ".join(
        f"{names[array.dtype]}[{','.join(str(size) for size in array.shape)}] {name}" for name, array in inputs.items()
    )
    header = '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>'
    proto = onnx.parser.parse_model(f"{header}\ng ({arguments}) => (float[] y)\n{{\n{node}\n}}")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(["y"], inputs)
    np.testing.assert_allclose(run(ir.from_proto(proto), inputs)["y"], expected, atol=tolerance, rtol=tolerance)


def test_the_low_half_of_a_byte_comes_first() -> None:
    np.testing.assert_array_equal(unpack(np.array([[0x21, 0x43]], np.uint8), 4), [[1, 2, 3, 4]])


def test_other_widths_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="weights of 3 bits"):
        unpack(np.zeros((1, 1), np.uint8), 3)


def test_the_lowest_bits_of_a_byte_come_first() -> None:
    np.testing.assert_array_equal(unpack(np.array([[0b11100100, 0b00000110]], np.uint8), 2), [[0, 1, 2, 3, 2, 1, 0, 0]])


def test_every_block_has_its_scale_and_zero() -> None:
    numbers = np.arange(6, dtype=np.uint8)[None]
    scales, zeros = np.array([[2.0, 10.0]], np.float32), np.array([[1, 4]], np.uint8)
    np.testing.assert_array_equal(dequantize(numbers, scales, 8, zeros), [[-2, 0, 2, -10, 0, 10]])
    np.testing.assert_array_equal(dequantize(numbers, scales, 8)[0, :2], [-256, -254])


@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize("zeros", ["none", "bytes", "floats"])
def test_matmul_n_bits(zeros: str, level: int) -> None:
    """onnxruntime rounds no activations where zero points are floats."""
    generator = np.random.default_rng(0)
    inputs = {"x": generator.normal(size=(3, 64)).astype(np.float32)}
    inputs["w"] = generator.integers(0, 256, size=(8, 2, 16), dtype=np.uint8)
    inputs["s"] = generator.uniform(0.01, 0.1, size=16).astype(np.float32)
    if zeros == "bytes":
        inputs["z"] = generator.integers(0, 256, size=8, dtype=np.uint8)
    elif zeros == "floats":
        inputs["z"] = generator.uniform(0, 15, size=16).astype(np.float32)
    attributes = f"K = 64, N = 8, bits = 4, block_size = 32, accuracy_level = {level}"
    against_onnxruntime(f"y = com.microsoft.MatMulNBits <{attributes}> ({', '.join(inputs)})", inputs, 1e-4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [0, 16])
@pytest.mark.parametrize("activation", ["silu", "gelu", "swiglu"])
def test_qmoe(activation: str, bits: int, block_size: int) -> None:
    generator = np.random.default_rng(0)
    rows, per_byte = (2 * F if activation == "swiglu" else F), 8 // bits
    blocks = [(length // block_size,) if block_size else () for length in (D, F)]
    inputs = {
        "x": generator.normal(size=(5, D)).astype(np.float32),
        "r": generator.normal(size=(5, E)).astype(np.float32),
        "w1": generator.integers(0, 256, size=(E, rows, D // per_byte), dtype=np.uint8),
        "s1": generator.uniform(0.5, 1, size=(E, rows, *blocks[0])).astype(np.float32) / 2 ** (bits + 2),
        "w2": generator.integers(0, 256, size=(E, D, F // per_byte), dtype=np.uint8),
        "s2": generator.uniform(0.5, 1, size=(E, D, *blocks[1])).astype(np.float32) / 2 ** (bits + 2),
    }
    fusion = ", swiglu_fusion = 1, activation_alpha = 1.702, activation_beta = 1.0" if activation == "swiglu" else ""
    attributes = f'activation_type = "{activation}", k = 2, normalize_routing_weights = 1, expert_weight_bits = {bits}'
    attributes += f", block_size = {block_size}" if block_size else ""
    against_onnxruntime(f'y = com.microsoft.QMoE <{attributes}{fusion}> (x, r, w1, s1, "", w2, s2)', inputs, 2e-3)
