"""onnxruntime's operators with 4- and 8-bit weights, computed with the exactly dequantised weights.

Where onnxruntime's CPU kernels quantise activations too, so do these: with ``accuracy_level`` 4, and for experts of 8
bits in blocks.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from moec.ir import contrib
from moec.ir.dialect import ProductSpec, RouteSpec
from moec.ir.products import rounded_rows

Array = np.ndarray[Any, Any]

INT8_LEVEL = 4
"""The ``accuracy_level`` that allows activations of 8 bits, quantised in the blocks of the weights."""


def unpack(packed: Array, bits: int) -> Array:
    """Unsigned numbers from bytes along the last axis; of several numbers in a byte the lowest bits come first."""
    if bits == 8:
        return packed
    if bits not in (2, 4):
        raise NotImplementedError(f"weights of {bits} bits are not supported; expected 2, 4 or 8")
    parts = [packed >> shift & 2**bits - 1 for shift in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(*packed.shape[:-1], -1)


def dequantize(packed: Array, scales: Array, bits: int, zero_points: Array | None = None) -> Array:
    """Weights [..., in] from bytes and scales [..., blocks]; without zero points zero is the middle of the range."""
    numbers = unpack(packed, bits).astype(scales.dtype)
    blocks = scales.shape[-1]
    block_size = -(-numbers.shape[-1] // blocks)
    zero: Any = 2 ** (bits - 1)
    if zero_points is not None:
        zero = np.repeat(zero_points.astype(scales.dtype), block_size, axis=-1)[..., : numbers.shape[-1]]
    return (numbers - zero) * np.repeat(scales, block_size, axis=-1)[..., : numbers.shape[-1]]


def matmul_uses_int8_activations(accuracy_level: int, *, float_zeros: bool) -> bool:
    """Whether MatMulNBits quantises activations in the blocks of its weights: with zero points that are floats
    onnxruntime dequantises its weights instead, whatever is allowed."""
    return accuracy_level == INT8_LEVEL and not float_zeros


def uses_int8_activations(bits: int, block_size: int, accuracy_level: int) -> bool:
    """Whether QMoE quantises activations in blocks: for 8-bit weights in blocks onnxruntime has no other kernel."""
    return block_size > 0 and (bits == 8 or accuracy_level == INT8_LEVEL)


def matmul_n_bits(
    x: Array,
    packed: Array,
    scales: Array,
    zero_points: Array | None = None,
    group_indices: Array | None = None,
    bias: Array | None = None,
    *,
    K: int,
    N: int,
    bits: int = 4,
    block_size: int = 32,
    accuracy_level: int = 0,
) -> Array:
    """``com.microsoft.MatMulNBits``: x [..., K] times weights [N, blocks, bytes] → [..., N]."""
    if group_indices is not None:
        raise NotImplementedError("com.microsoft.MatMulNBits: input g_idx is not supported")
    scales = scales.reshape(N, -1)
    float_zeros = zero_points is not None and zero_points.dtype != np.uint8
    if zero_points is not None and not float_zeros:
        zero_points = unpack(zero_points.reshape(N, -1), bits)[:, : scales.shape[1]]
    elif zero_points is not None:
        zero_points = zero_points.reshape(scales.shape)
    weights = dequantize(packed.reshape(N, -1), scales, bits, zero_points)[:, :K]
    if matmul_uses_int8_activations(accuracy_level, float_zeros=float_zeros):
        x = rounded_rows(ProductSpec(arithmetic="int8", activation_group=block_size), x)
    product = x @ weights.T
    return (product if bias is None else product + bias).astype(x.dtype)


def qmoe(
    x: Array,
    logits: Array,
    fc1: Array,
    fc1_scales: Array,
    fc1_bias: Array | None,
    fc2: Array,
    fc2_scales: Array,
    fc2_bias: Array | None = None,
    fc3: Array | None = None,
    fc3_scales: Array | None = None,
    fc3_bias: Array | None = None,
    *others: Array | None,
    k: int = 1,
    expert_weight_bits: int = 4,
    block_size: int = 0,
    accuracy_level: int = 0,
    normalize_routing_weights: int = 0,
    use_sparse_mixer: int = 0,
    **attributes: Any,
) -> Array:
    """``com.microsoft.QMoE``: scales are [E, out] for rows or [E, out, blocks].

    The routing weights are always normalised: onnxruntime's CPU kernel ignores ``normalize_routing_weights``.
    """
    if use_sparse_mixer or any(other is not None for other in others):
        raise NotImplementedError(
            "com.microsoft.QMoE: zero points, separate router weights and use_sparse_mixer are not supported"
        )

    def weights(packed: Array, scales: Array) -> Array:
        return dequantize(packed, scales.reshape(*packed.shape[:2], -1), expert_weight_bits)

    spec = contrib.experts_spec(fc3 is not None, **attributes)
    if uses_int8_activations(expert_weight_bits, block_size, accuracy_level):
        spec = dataclasses.replace(spec, arithmetic="int8", activation_group=block_size)
    up = None if fc3 is None or fc3_scales is None else weights(fc3, fc3_scales)
    dense = (weights(fc1, fc1_scales), fc1_bias, weights(fc2, fc2_scales), fc2_bias, up, fc3_bias)
    return contrib.routed_experts(RouteSpec(k=k, normalize=True), spec, x, logits, *dense)
