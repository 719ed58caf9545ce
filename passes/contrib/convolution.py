"""The causal convolution of state space models, whose last inputs are kept for the next call."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moec.passes.graph.writer import NotDecomposableError, Writer, dtype_of, rank_of

_LATER_THAN_ANY = np.iinfo(np.int64).max


def causal_conv_with_state(write: Writer) -> list[ir.Value | None]:
    """Decompose CausalConvWithState: x [B,C,L] after the state [B,C,K-1], through a convolution per channel. The new
    state is the end of both.

    With channels_last x is [B,L,C] and the state [B,K-1,C].
    """
    write.refuse_attributes(ndim=1, state_window=0, state_channels_last=-1, state_length=0)
    write.refuse_attributes(state_update_capacity=0, input_channels=0, input_channel_offset=0)
    activation, dilation = write.attribute("activation", "none"), write.attribute("dilation", 1)
    if activation not in ("none", "silu", "swish"):
        raise NotDecomposableError(f"attribute activation is {activation!r}; expected 'none', 'silu' or 'swish'")
    if write.attribute("channels_last", 0) and rank_of(write.required(0, "input"), "input") != 3:
        raise NotDecomposableError("channels_last with several axes of channels; expected an input [B,L,C]")
    x, weight = _channels_first(write, write.required(0, "input")), write.required(1, "weight")
    if weight.shape is None or len(weight.shape) != 3 or not weight.shape.is_static():
        raise NotDecomposableError("the shape of weight is not known; expected [channels, 1, taps]")
    channels, _, taps = weight.shape.numpy()
    length = (taps - 1) * dilation
    padded = _behind_state(write, x, length)
    bias = write.input(2)
    inputs = [padded, weight, *([] if bias is None else [bias])]
    y = write.add("Conv", *inputs, group=channels, dilations=[dilation], kernel_shape=[taps])
    if activation != "none":
        y = write.add("Mul", y, write.add("Sigmoid", y))
    start, end, axis = write.numbers(-length), write.numbers(_LATER_THAN_ANY), write.numbers(2)
    if length == 0:
        start = end
    state = write.add("Slice", padded, start, end, axis, label="state")
    return [_channels_first(write, y), _channels_first(write, state)]


def _channels_first(write: Writer, x: ir.Value) -> ir.Value:
    """The last two axes in the order of the other layout, where channels come last outside; else x itself."""
    return write.add("Transpose", x, perm=[0, 2, 1]) if write.attribute("channels_last", 0) else x


def _behind_state(write: Writer, x: ir.Value, length: int) -> ir.Value:
    """[B,C,length+L]: the state, or zeros where there is none, and x."""
    state = write.input(3)
    if state is not None:
        return write.add("Concat", _channels_first(write, state), x, axis=2)
    zero = write.constant(np.array(0, dtype_of(write.required(0, "input"), "input").numpy()), "zero")
    return write.add("Pad", x, write.numbers(length, 0), zero, write.numbers(2))
