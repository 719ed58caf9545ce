"""The dense operators on a CPU."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import onnx_ir as ir
from tvm import relax

from moec.targets.cpu.attention import attend
from moec.targets.cpu.convolution import lower_convolution
from moec.targets.cpu.hardware.machine import Machine
from moec.targets.cpu.kernels.linear_attention import LINEAR_ATTENTION
from moec.targets.cpu.kernels.normalization import LAYER_NORM, RMS_NORM
from moec.targets.cpu.kernels.softmax import SOFTMAX
from moec.targets.cpu.matmul import PackedProducts
from moec.targets.tvm.heavy import linear_attention, matmul
from moec.targets.tvm.heavy.attention import lower_attention
from moec.targets.tvm.heavy.rows import RowOps
from moec.targets.tvm.lowering.context import HeavyConverter, LoweringContext


def converters(machine: Machine) -> Mapping[str, HeavyConverter]:
    """The converters of the dense operators, for a machine."""

    def convert_attention(lowering: LoweringContext, node: ir.Node) -> list[relax.Expr]:
        return lower_attention(
            lowering,
            node,
            functools.partial(attend, machine),
            takes_sinks=True,
            takes_windows=True,
            takes_values_in_keys=True,
        )

    return {
        "Attention": convert_attention,
        "Conv": lambda lowering, node: lower_convolution(lowering, node, machine),
        "LinearAttention": linear_attention.converter(LINEAR_ATTENTION, machine),
        **matmul.converters(PackedProducts(machine)),
        **RowOps(machine, SOFTMAX, RMS_NORM, LAYER_NORM, needs_bias=True).converters(),
    }
