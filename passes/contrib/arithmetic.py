"""Fused sums, products, activations and normalisations, spelled out."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moec.passes.contrib.writer import NotDecomposableError, Writer, dtype_of, rank_of

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


def skip_simplified_layer_normalization(write: Writer) -> Outputs:
    """RMS normalisation of a residual sum; the sum is output 3."""
    total = _residual_sum(write, bias_position=3)
    epsilon = write.attribute("epsilon", 1e-12)
    return [write.add("RMSNormalization", total, write.required(2, "gamma"), epsilon=epsilon), None, None, total]


def skip_layer_normalization(write: Writer) -> Outputs:
    """Layer normalisation of a residual sum; the sum is output 3."""
    total = _residual_sum(write, bias_position=4)
    inputs = [total, write.required(2, "gamma"), *([] if write.input(3) is None else [write.input(3)])]
    normalized = write.add("LayerNormalization", *inputs, epsilon=write.attribute("epsilon", 1e-12))
    return [normalized, None, None, total]


def _residual_sum(write: Writer, bias_position: int) -> ir.Value:
    write.refuse_outputs(1, 2)
    total = write.add("Add", write.required(0, "input"), write.required(1, "skip"))
    bias = write.input(bias_position)
    return total if bias is None else write.add("Add", total, bias)
