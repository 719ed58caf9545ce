"""Fused sums, products, activations and normalisations, spelled out."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moec.passes.graph.writer import NotDecomposableError, Writer, as_float32, dtype_of, rank_of

Outputs = list["ir.Value | None"]


def quick_gelu(write: Writer) -> Outputs:
    return [write.add("Swish", write.required(0, "X"), alpha=write.attribute("alpha", 1.702))]


def gelu(write: Writer) -> Outputs:
    return [write.add("Gelu", write.required(0, "X"))]


def bias_gelu(write: Writer) -> Outputs:
    return [write.add("Gelu", write.add("Add", write.required(0, "A"), write.required(1, "B")))]


def fast_gelu(write: Writer) -> Outputs:
    x, bias = write.required(0, "X"), write.input(1)
    return [write.add("Gelu", x if bias is None else write.add("Add", x, bias), approximate="tanh")]


def fused_matmul(write: Writer) -> Outputs:
    """``alpha * A @ B`` with transposed operands."""
    alpha, a, b = write.attribute("alpha", 1.0), write.required(0, "A"), write.required(1, "B")
    factor = None if alpha == 1.0 else write.constant(np.array(alpha, dtype_of(a, "A").numpy()), "alpha")
    product = write.add("MatMul", _arranged(write, a, "A"), _arranged(write, b, "B"))
    return [product if factor is None else write.add("Mul", product, factor)]


def _arranged(write: Writer, operand: ir.Value, letter: str) -> ir.Value:
    """The operand with its first axis moved next to last (transBatch), then its last two axes swapped (trans)."""
    swaps, moves = write.attribute(f"trans{letter}", 0), write.attribute(f"transBatch{letter}", 0)
    if not swaps and not moves:
        return operand
    rank = rank_of(operand, letter)
    if rank < 2:
        raise NotDecomposableError(f"{letter} has {rank} axes and is to be transposed; expected two or more")
    axes = [*range(1, rank - 1), 0, rank - 1] if moves else list(range(rank))
    if swaps:
        axes[-2:] = axes[:-3:-1]
    return write.add("Transpose", operand, perm=axes)


_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Celu": ("alpha",),
    "Elu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "LeakyRelu": ("alpha",),
    "Relu": (),
    "Selu": ("alpha", "gamma"),
    "Sigmoid": (),
    "Softplus": (),
    "Softsign": (),
    "Tanh": (),
    "ThresholdedRelu": ("alpha",),
}
"""Activations that onnxruntime fuses into a product, by ONNX's names, with the attributes of each."""


def fused_gemm(write: Writer) -> Outputs:
    """``activation(alpha * A @ B + beta * C)``; the activation's attributes begin with ``activation_``."""
    activation = write.attribute("activation", "")
    if activation not in _ACTIVATIONS:
        raise NotDecomposableError(f"activation is {activation!r}; expected one of {', '.join(_ACTIVATIONS)}")
    operands = [write.required(0, "A"), write.required(1, "B"), *([] if write.input(2) is None else [write.input(2)])]
    attributes = {name: write.attribute(name, default) for name, default in _GEMM.items()}
    product = write.add("Gemm", *operands, **attributes)
    options = {name: write.attribute(f"activation_{name}", None) for name in _ACTIVATIONS[activation]}
    options = {name: value for name, value in options.items() if value is not None}
    return [write.add(activation, product, **options)]


_GEMM = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}


def skip_simplified_layer_normalization(write: Writer) -> Outputs:
    """RMS normalisation of a residual sum; the reciprocal root mean square is output 2, the sum output 3."""
    write.refuse_outputs(1)
    total = _residual_sum(write, bias_position=3)
    epsilon = write.attribute("epsilon", 1e-12)
    normalized = write.add("RMSNormalization", total, write.required(2, "gamma"), epsilon=epsilon)
    reciprocal = _reciprocal_deviation(write, as_float32(write, total), epsilon) if write.is_used(2) else None
    return [normalized, None, reciprocal, total]


def skip_layer_normalization(write: Writer) -> Outputs:
    """Layer normalisation of a residual sum; its mean, reciprocal deviation and the sum are outputs 1 to 3."""
    total = _residual_sum(write, bias_position=4)
    inputs = [total, write.required(2, "gamma"), *([] if write.input(3) is None else [write.input(3)])]
    epsilon = write.attribute("epsilon", 1e-12)
    normalized = write.add("LayerNormalization", *inputs, epsilon=epsilon)
    if not write.is_used(1) and not write.is_used(2):
        return [normalized, None, None, total]
    wide = as_float32(write, total)
    mean = _mean(write, wide)
    centred = write.add("Sub", wide, mean)
    return [normalized, mean, _reciprocal_deviation(write, centred, epsilon), total]


def _mean(write: Writer, x: ir.Value) -> ir.Value:
    """[...,1]: the means of rows."""
    return write.add("ReduceMean", x, write.numbers(-1), keepdims=1)


def _reciprocal_deviation(write: Writer, x: ir.Value, epsilon: float) -> ir.Value:
    """[...,1]: ``1 / sqrt(mean(x**2) + epsilon)`` of rows of float32."""
    variance = _mean(write, write.add("Mul", x, x))
    shifted = write.add("Add", variance, write.constant(np.array(epsilon, np.float32), "epsilon"))
    return write.add("Reciprocal", write.add("Sqrt", shifted))


def _residual_sum(write: Writer, bias_position: int) -> ir.Value:
    total = write.add("Add", write.required(0, "input"), write.required(1, "skip"))
    bias = write.input(bias_position)
    return total if bias is None else write.add("Add", total, bias)
