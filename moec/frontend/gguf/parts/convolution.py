"""Causal convolutions by channel, whose last inputs are cached."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moec.frontend.gguf.graph.builder import BATCH, Builder

_BEHIND_ALL = np.iinfo(np.int64).max


def causal_convolution(build: Builder, x: ir.Value, layer: int, name: str, channels: int, taps: int) -> ir.Value:
    """Convolve each channel of x [B,S,channels] over its last ``taps`` inputs, with the weights ``name.weight`` and,
    where the file has one, the bias ``name.bias``. Returns [B,S,channels]."""
    write = build.write
    rows = write.op("Transpose", x, perm=[0, 2, 1], label=f"{name}.channels")
    if build.with_cache:
        rows = write.op(
            "Concat", build.past("conv", layer, (BATCH, channels, taps - 1)), rows, axis=2, label=f"{name}.rows"
        )
        axis = write.numbers(2)
        kept = write.op("Slice", rows, write.numbers(1 - taps), write.numbers(_BEHIND_ALL), axis, label=f"{name}.kept")
        build.keep("conv", layer, kept)
    else:
        rows = write.op("Pad", rows, write.numbers(taps - 1, 0), None, write.numbers(2), label=f"{name}.rows")
    operands = [write.constant(build.numbers(f"{name}.weight", channels, taps)[:, None], name)]
    if build.has(f"{name}.bias"):
        operands.append(build.vector(f"{name}.bias", channels))
    mixed = write.op("Conv", rows, *operands, group=channels, kernel_shape=[taps], label=f"{name}.mixed")
    return write.op("Transpose", mixed, perm=[0, 2, 1], label=f"{name}.tokens")
