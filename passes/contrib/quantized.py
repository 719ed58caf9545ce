"""Weights of 2, 4 and 8 bits as onnxruntime packs them, as ONNX's DequantizeLinear has them.

onnxruntime stores unsigned numbers. Without zero points their zero is the middle of the range: less it they are signed
and symmetric, the form that kernels have a path for. Those of 2 bits become numbers of 4. Weights are repacked when
they are read, one expert at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from moec.ir.contrib_quantized import dequantize, matmul_uses_int8_activations, unpack
from moec.ir.dialect import LinearSpec, make_node
from moec.ir.weights.stacks import ExpertStack, expert_data
from moec.passes.graph.writer import NotDecomposableError, Writer, as_float32, dtype_of

Array = np.ndarray[Any, Any]

_SIGNED = {2: ir.DataType.INT4, 4: ir.DataType.INT4, 8: ir.DataType.INT8}
_UNSIGNED = {2: ir.DataType.UINT4, 4: ir.DataType.UINT4, 8: ir.DataType.UINT8}


def unsigned(packed: Array, bits: int, length: int) -> Array:
    """The numbers of bytes along the last axis, the first ``length`` of them, as 4-bit or 8-bit unsigned numbers."""
    numbers = unpack(packed, bits)[..., :length]
    return numbers if bits == 8 else numbers.astype(ml_dtypes.uint4)


def signed(packed: Array, bits: int, length: int) -> Array:
    """Like :func:`unsigned`, less the middle of the range."""
    numbers = unpack(packed, bits)[..., :length].astype(np.int16) - 2 ** (bits - 1)
    return numbers.astype(np.int8 if bits == 8 else ml_dtypes.int4)


def expert_weights(
    write: Writer, packed: ir.Value, scales: ir.Value, zeros: ir.Value | None, bits: int, label: str
) -> ir.Value:
    """Experts [E,out,in] from bytes [E,out,in*bits/8], scales [E,out] or [E,out,blocks] and packed zero points."""
    E, out, width = check_packed(packed, bits, 3)
    length = width * 8 // bits
    blocks = _shape(scales)[2] if len(_shape(scales)) == 3 else 1

    def stack(source: ir.Value, dtype: ir.DataType, size: int, unpacked: Callable[[Array], Array]) -> ir.Value:
        def load(expert: int) -> Array:
            return unpacked(expert_data(source, expert).reshape(out, -1))

        return write.weight(ExpertStack(None, dtype, (E, out, size), load), f"{label}.{dtype.name.lower()}")

    scale = stack(scales, _scale_type(scales), blocks, _as_scales)
    if zeros is None:
        data = stack(packed, _SIGNED[bits], length, functools.partial(signed, bits=bits, length=length))
        return _dequantized(write, data, scale, None, 2, -(-length // blocks))
    if len(_shape(scales)) == 2 and bits < 8:
        zeros = _zeros_per_row(write, zeros, bits, E, out)
    data, zero = (
        stack(source, _UNSIGNED[bits], size, functools.partial(unsigned, bits=bits, length=size))
        for source, size in ((packed, length), (zeros, blocks))
    )
    return _dequantized(write, data, scale, zero, 2, -(-length // blocks))


def _zeros_per_row(write: Writer, zeros: ir.Value, bits: int, E: int, out: int) -> ir.Value:
    """Zero points [E,out*bits/8], of several rows in a byte, with a byte for each row."""

    def load(expert: int) -> Array:
        return unpack(expert_data(zeros, expert), bits)[:out, None]

    return write.weight(ExpertStack(None, ir.DataType.UINT8, (E, out, 1), load), "zero_points")


def matmul_n_bits(write: Writer) -> list[ir.Value | None]:
    """A product with weights [N,blocks,bytes], of activations of 8 bits where these are allowed.

    Products are computed in float32, whatever the type of x.
    """
    write.refuse_inputs(g_idx=4)
    write.refuse_attributes(weight_prepacked=0)
    x, packed, scales = write.required(0, "A"), write.required(1, "B"), write.required(2, "scales")
    bits, block_size = write.attribute("bits", 4), write.attribute("block_size", 32)
    zeros, bias, dtype = write.input(3), write.input(5), dtype_of(x, "A")
    K, N = write.attribute("K", 0), write.attribute("N", 0)
    blocks = -(-K // block_size)
    if zeros is not None:
        _shape(zeros)
    if check_packed(packed, bits, 3)[:2] != (N, blocks) or int(np.prod(_shape(scales))) != N * blocks:
        raise NotDecomposableError(f"B is {_shape(packed)} and scales {_shape(scales)}; expected [{N},{blocks},...]")
    has_bytes = zeros is None or dtype_of(zeros, "zero_points") == ir.DataType.UINT8
    is_integer = matmul_uses_int8_activations(write.attribute("accuracy_level", 0), float_zeros=not has_bytes)
    spec = LinearSpec(arithmetic="int8", activation_group=block_size) if is_integer else LinearSpec()
    inputs: dict[str, ir.Value | None] = {"x": as_float32(write, x)}
    stored = (packed, scales, zeros)
    read = _matrix if has_bytes else _plain_matrix
    inputs["weight"] = read(write, stored, (N, K), bits, block_size)
    inputs["bias"] = None if bias is None else as_float32(write, bias)
    product = write.insert(make_node("Linear", inputs, spec), "product")
    return [product if dtype == ir.DataType.FLOAT else write.add("Cast", product, to=dtype)]


def gather_block_quantized(write: Writer) -> list[ir.Value | None]:
    """Rows of a table [rows,bytes] by their number; the table may be the weight of a MatMulNBits, reshaped."""
    indices = write.required(1, "indices")
    (packed, shape), scales = _reshaped(write.required(0, "data")), write.required(2, "scales")
    bits, block_size, zeros = write.attribute("bits", 4), write.attribute("block_size", 128), write.input(3)
    check_packed(packed, bits, len(_shape(packed)))
    if packed.dtype != ir.DataType.UINT8 or len(shape) != 2:
        raise NotDecomposableError(f"its table is {packed.dtype}{list(shape)}; expected bytes [rows,bytes]")
    if write.attribute("gather_axis", 0) != 0 or write.attribute("quantize_axis", 1) not in (1, -1):
        raise NotDecomposableError(
            "it gathers rows, or has blocks, along another axis; expected gather_axis 0, quantize_axis 1"
        )
    if zeros is not None:
        _shape(zeros)
    rows, width = shape[0], shape[1] * 8 // bits
    if int(np.prod(_shape(scales))) != rows * -(-width // block_size):
        raise NotDecomposableError(f"scales are {_shape(scales)}; expected one for {block_size} of {width} numbers")
    table = _matrix(write, (packed, scales, zeros), (rows, width), bits, block_size)
    taken, dtype = write.add("Gather", table, indices, axis=0), dtype_of(scales, "scales")
    return [taken if dtype == ir.DataType.FLOAT else write.add("Cast", taken, to=dtype)]


def _reshaped(value: ir.Value) -> tuple[ir.Value, tuple[int, ...]]:
    """A constant and its shape; for a reshaped constant the original one, with the shape after Reshape."""
    node = value.producer()
    if node is None or node.op_type != "Reshape" or node.inputs[0] is None or node.inputs[1] is None:
        return value, _shape(value)
    _shape(node.inputs[1])
    return node.inputs[0], tuple(int(size) for size in _numbers(node.inputs[1]))


_Stored = tuple[ir.Value, ir.Value, "ir.Value | None"]
"""Bytes, scales and zero points of a weight."""


def _plain_matrix(write: Writer, stored: _Stored, shape: tuple[int, int], bits: int, block_size: int) -> ir.Value:
    """The weight [N,K] in float32, for zero points between the numbers that DequantizeLinear has."""
    N, K = shape

    def load() -> ir.TensorProtocol:
        packed, scales, zeros = (_numbers(value) for value in stored)
        scales = _as_scales(scales).astype(np.float32).reshape(N, -1)
        weight = dequantize(packed.reshape(N, -1), scales, bits, zeros.astype(np.float32).reshape(scales.shape))
        return ir.tensor(weight[:, :K])

    write.remarks.append("its zero points are floats, so its weights are stored in float32")
    return write.weight(ir.LazyTensor(load, ir.DataType.FLOAT, ir.Shape(shape)), "weight")


def _numbers(value: ir.Value | None) -> Array:
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


def _matrix(write: Writer, stored: _Stored, shape: tuple[int, int], bits: int, block_size: int) -> ir.Value:
    """The weight [N,K], unpacked when it is read."""
    packed, scales, zeros = stored
    N, K = shape
    blocks = -(-K // block_size)

    def matrix(source: ir.Value, dtype: ir.DataType, size: int, unpacked: Callable[[Array], Array]) -> ir.Value:
        def load() -> ir.TensorProtocol:
            return ir.Tensor(unpacked(_numbers(source).reshape(N, -1)), dtype=dtype)

        return write.weight(ir.LazyTensor(load, dtype, ir.Shape((N, size))), dtype.name.lower())

    scale = matrix(scales, _scale_type(scales), blocks, _as_scales)
    if zeros is None:
        data = matrix(packed, _SIGNED[bits], K, functools.partial(signed, bits=bits, length=K))
        return _dequantized(write, data, scale, None, 1, block_size)
    data, zero = (
        matrix(source, _UNSIGNED[bits], size, functools.partial(unsigned, bits=bits, length=size))
        for source, size in ((packed, K), (zeros, blocks))
    )
    return _dequantized(write, data, scale, zero, 1, block_size)


def _dequantized(
    write: Writer, data: ir.Value, scale: ir.Value, zero: ir.Value | None, axis: int, block_size: int
) -> ir.Value:
    inputs = [data, scale, *([] if zero is None else [zero])]
    attributes = {"axis": axis, "block_size": block_size, "output_dtype": ir.DataType.FLOAT}
    weight = write.insert(ir.node("DequantizeLinear", inputs, attributes=attributes), "weight")
    weight.shape, weight.dtype = data.shape, ir.DataType.FLOAT
    return weight


def _scale_type(scales: ir.Value) -> ir.DataType:
    return ir.DataType.FLOAT16 if scales.dtype == ir.DataType.FLOAT16 else ir.DataType.FLOAT


def _as_scales(scales: Array) -> Array:
    return scales if scales.dtype == np.float16 else scales.astype(np.float32)


def check_packed(packed: ir.Value, bits: int, rank: int) -> tuple[int, ...]:
    """The shape of packed weights. Raises NotDecomposableError when these are not constants of 2, 4 or 8 bits."""
    if bits not in _SIGNED:
        raise NotDecomposableError(f"its weights have {bits} bits; expected 2, 4 or 8")
    if packed.const_value is None or packed.is_graph_input():
        raise NotDecomposableError("its weights are computed when the model runs; expected constants")
    shape = _shape(packed)
    if packed.dtype not in (ir.DataType.UINT8, None) or len(shape) != rank:
        raise NotDecomposableError(f"its weights are {packed.dtype}{list(shape)}; expected bytes with {rank} axes")
    return shape


def _shape(value: ir.Value) -> tuple[int, ...]:
    if value.const_value is None or value.is_graph_input():
        raise NotDecomposableError(f"{value.name!r} is computed when the model runs; expected a constant")
    return tuple(value.const_value.shape.numpy())
