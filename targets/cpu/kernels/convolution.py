"""Direct convolution for the small ones around MoE models: a depthwise convolution over time, a patch embedding.

``y[n, o, r, s]`` is ``bias[o]`` plus the sum over (i, a, b) of ``w[o, i, a, b]`` times x at channel i of o's group, row
``r * stride - pad + a * dilation`` and a column of the same form; elements outside x are zero. Batch and spatial sizes
are dynamic, channels and window are static. A task is one output channel of one batch element; every sum runs over
(i, a, b) in ascending order.
"""

from __future__ import annotations

import dataclasses

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.tvm.kernels.kernel import Kernel, in_storage, why_not_stored


@dataclasses.dataclass(frozen=True)
class ConvolutionProblem:
    """The static part. A 1-D convolution has height 1 everywhere. ``pads`` are top and left; those at the end only
    show in the size of y."""

    channels: int
    outputs: int
    groups: int
    window: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int]
    dilations: tuple[int, int]


def convolution(problem: ConvolutionProblem, dtype: str = "float32") -> tirx.PrimFunc:
    """The kernel ``(x[B, C, H, W], weight[O, C / groups, a, b], bias[O], y[B, O, R, S])``; sums are float32."""
    group_inputs = problem.channels // problem.groups
    group_outputs = problem.outputs // problem.groups
    window_rows, window_columns = problem.window
    row_stride, column_stride = problem.strides
    top, left = problem.pads
    row_dilation, column_dilation = problem.dilations

    @T.prim_func(s_tir=True)
    def kernel(x_handle: T.handle, weight_handle: T.handle, bias_handle: T.handle, y_handle: T.handle):
        T.func_attr({"tirx.noalias": True})
        B, H, W, R, S = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        x = T.match_buffer(x_handle, (B, problem.channels, H, W), dtype, align=64)
        weight = T.match_buffer(
            weight_handle, (problem.outputs, group_inputs, window_rows, window_columns), dtype, align=64
        )
        bias = T.match_buffer(bias_handle, (problem.outputs,), dtype, align=64)
        y = T.match_buffer(y_handle, (B, problem.outputs, R, S), dtype, align=64)
        for task in T.parallel(B * problem.outputs):
            batch: T.let[T.int64] = task // problem.outputs
            output: T.let[T.int64] = task % problem.outputs
            total = T.alloc_buffer((1,), "float32", scope="local")
            for r in range(R):
                for s in range(S):
                    total[0] = T.cast(bias[output], "float32")
                    for i in range(group_inputs):
                        for a in range(window_rows):
                            for b in range(window_columns):
                                row: T.let[T.int64] = r * row_stride - top + a * row_dilation
                                column: T.let[T.int64] = s * column_stride - left + b * column_dilation
                                if row >= 0 and row < H and column >= 0 and column < W:
                                    total[0] = total[0] + T.cast(
                                        x[batch, output // group_outputs * group_inputs + i, row, column], "float32"
                                    ) * T.cast(weight[output, i, a, b], "float32")
                    y[batch, output, r, s] = T.cast(total[0], dtype)

    return kernel


CONVOLUTION = Kernel(
    "convolution",
    "y = x convolved with weight + bias, direct",
    convolution,
    how=lambda dtype, _: in_storage("direct: one sum per element of the result", dtype),
    why_not=lambda dtype, _: why_not_stored(dtype),
)
