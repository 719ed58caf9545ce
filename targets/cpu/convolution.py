"""Conv with one or two spatial axes."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from tvm import relax, tirx

from moec.common.errors import UnsupportedError
from moec.targets.cpu.hardware.machine import Machine
from moec.targets.cpu.kernels.convolution import CONVOLUTION, ConvolutionProblem
from moec.targets.cpu.matmul import zeros
from moec.targets.tvm.kernels.kernel import KernelCall, select
from moec.targets.tvm.lowering.attributes import attribute, group_count, optional_input, required_input, steps
from moec.targets.tvm.lowering.context import LoweringContext
from moec.targets.tvm.lowering.nodes import call, reshape
from moec.targets.tvm.sizes.shapes import static_size


def lower_convolution(lowering: LoweringContext, node: ir.Node, machine: Machine) -> relax.Expr:
    """Raises UnsupportedError for three or more spatial axes, dynamic channels and automatic padding."""
    x, weight = lowering.tensor(required_input(node, 0)), lowering.tensor(required_input(node, 1))
    shape, window = list(x.ty.shape), _static_sizes(weight.ty.shape)
    spatial, channels = len(shape) - 2, static_size(shape[1])
    if spatial not in (1, 2) or len(window) != len(shape) or channels is None:
        raise UnsupportedError("expected one or two spatial axes, and static channels and window")
    if attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise UnsupportedError("automatic padding depends on the input's size; expected explicit pads")
    pads = [int(pad) for pad in attribute(node, "pads", [0] * 2 * spatial)]
    strides, dilations = steps(node, "strides", spatial), steps(node, "dilations", spatial)
    groups = group_count(node, window[0])
    if channels != window[1] * groups:
        raise UnsupportedError(f"{channels} channels, a window for {window[1]} in {groups} groups; expected as many")
    sizes = [
        (size + pads[axis] + pads[axis + spatial] - dilations[axis] * (window[axis + 2] - 1) - 1) // strides[axis] + 1
        for axis, size in enumerate(shape[2:])
    ]
    lift = [1] * (2 - spatial)
    problem = ConvolutionProblem(
        channels=channels,
        outputs=window[0],
        groups=groups,
        window=_plane(window[2:], 1),
        strides=_plane(strides, 1),
        pads=_plane(pads[:spatial], 0),
        dilations=_plane(dilations, 1),
    )
    dtype = str(x.ty.dtype)
    chosen = select((CONVOLUTION,), dtype, machine)
    operand = optional_input(node, 2)
    bias = zeros(lowering, problem.outputs, dtype) if operand is None else lowering.tensor(operand)
    arguments = [
        reshape(lowering, x, [*shape[:2], *lift, *shape[2:]]),
        reshape(lowering, weight, [*window[:2], *problem.window]),
        bias,
    ]
    result_shape = [shape[0], problem.outputs, *lift, *sizes]
    called = KernelCall(chosen, CONVOLUTION.build(problem, dtype), arguments)
    result = call(lowering, node, called, result_shape, dtype)
    return reshape(lowering, result, [shape[0], problem.outputs, *sizes])


def _static_sizes(shape: Sequence[tirx.Expr]) -> list[int]:
    """The static ones among the sizes."""
    return [size for size in map(static_size, shape) if size is not None]


def _plane(numbers: Sequence[int], fill: int) -> tuple[int, int]:
    """A number for each axis of a plane; a convolution over one axis is one over the plane's columns."""
    return (fill, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])
