"""The dense operators on a GPU: kernels of moec's own, and tensor expressions that TVM schedules."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import onnx_ir as ir
from tvm import relax

from moec.common.errors import UnsupportedError
from moec.targets.cuda.attention import attend
from moec.targets.cuda.matmul import DenseProducts
from moec.targets.gpu.kernels.linear_attention import LINEAR_ATTENTION
from moec.targets.gpu.kernels.normalization import LAYER_NORM, RMS_NORM
from moec.targets.gpu.kernels.softmax import SOFTMAX
from moec.targets.tvm.heavy import linear_attention, matmul
from moec.targets.tvm.heavy.attention import lower_attention
from moec.targets.tvm.heavy.rows import RowOps
from moec.targets.tvm.lowering.attributes import attribute, group_count, optional_input, required_input, steps
from moec.targets.tvm.lowering.context import HeavyConverter, LoweringContext
from moec.targets.tvm.sizes.shapes import static_size


def converters(architecture: str) -> Mapping[str, HeavyConverter]:
    """The converters of the dense operators, for GPUs of an architecture."""

    def convert_attention(lowering: LoweringContext, node: ir.Node) -> list[relax.Expr]:
        return lower_attention(
            lowering,
            node,
            functools.partial(attend, architecture),
            takes_sinks=True,
            takes_windows=True,
            takes_values_in_keys=True,
        )

    return {
        "Attention": convert_attention,
        "Conv": lower_convolution,
        "LinearAttention": linear_attention.converter(LINEAR_ATTENTION, architecture),
        **matmul.converters(DenseProducts(architecture)),
        **RowOps(architecture, SOFTMAX, RMS_NORM, LAYER_NORM, adds_bias=True).converters(),
    }


def lower_convolution(lowering: LoweringContext, node: ir.Node) -> relax.Expr:
    """Conv with one or two spatial axes. Raises UnsupportedError for another number, and for automatic padding."""
    x, weight = (lowering.tensor(required_input(node, position)) for position in (0, 1))
    spatial = len(x.ty.shape) - 2
    if spatial not in (1, 2) or attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise UnsupportedError("expected one or two spatial axes, and explicit pads")
    options = {
        "strides": steps(node, "strides", spatial),
        "padding": [int(pad) for pad in attribute(node, "pads", [0] * 2 * spatial)],
        "dilation": steps(node, "dilations", spatial),
        "groups": group_count(node, static_size(weight.ty.shape[0]) or 0),
    }
    convolve = relax.op.nn.conv1d if spatial == 1 else relax.op.nn.conv2d
    for axis, step in enumerate(options["dilation"], start=2):
        size, window = static_size(x.ty.shape[axis]), static_size(weight.ty.shape[axis])
        pads = options["padding"][axis - 2] + options["padding"][axis - 2 + spatial]
        if size is not None and window is not None and size + pads < step * (window - 1) + 1:
            raise UnsupportedError(
                f"a window of {window} on axis {axis} is larger than its padded input; expected less"
            )
    result = lowering.emit(convolve(x, weight, **options))
    bias = optional_input(node, 2)
    if bias is None:
        return result
    shape = [1, weight.ty.shape[0], *[1] * spatial]
    return relax.op.add(result, relax.op.reshape(lowering.tensor(bias), shape))
