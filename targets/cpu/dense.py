"""The CPU target's converters for dense operators."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
from tvm import relax

from moec.targets.cpu.attention import lower_attention
from moec.targets.cpu.convolution import lower_convolution
from moec.targets.cpu.machine import Machine
from moec.targets.cpu.products import lower_gemm, lower_matmul, multiply_batches
from moec.targets.cpu.rows import lower_layer_norm, lower_rms_norm, lower_softmax
from moec.targets.tvm.einsum import lower_einsum
from moec.targets.tvm.heavy import HeavyConverter, LoweringContext


def _lower_einsum(lowering: LoweringContext, node: ir.Node, machine: Machine) -> relax.Expr:
    return lower_einsum(lowering, node, functools.partial(multiply_batches, lowering, node, machine))


_CONVERTERS: dict[str, Callable[..., Any]] = {
    "Attention": lower_attention,
    "Conv": lower_convolution,
    "Einsum": _lower_einsum,
    "Gemm": lower_gemm,
    "LayerNormalization": lower_layer_norm,
    "MatMul": lower_matmul,
    "RMSNormalization": lower_rms_norm,
    "Softmax": lower_softmax,
}


class DenseOps:
    """The dense part of the CPU target's :class:`~moec.targets.tvm.heavy.HeavyOps`."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def converters(self) -> Mapping[str, HeavyConverter]:
        return {name: functools.partial(_convert, converter, self._machine) for name, converter in _CONVERTERS.items()}


def _convert(converter: Callable[..., Any], machine: Machine, lowering: Any, node: Any) -> Any:
    return converter(lowering, node, machine)
