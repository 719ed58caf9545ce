"""Runs an optimised module kernel by kernel, so that every tensor between two kernels is guarded, too, and so that a
module for a processor that is emulated can be run at all. New tensors hold no zeros but what nobody can take for data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import tvm
from tvm import relax, tirx

from moec.targets.cpu.hardware.machine import Machine

from .kernel_runner import Kernel, build

Array = np.ndarray[Any, Any]
_POISON = 0xFF
"""Every byte of a new tensor: floats are NaN, integers -1."""


class StepByStep:
    """The function ``main`` of a module whose operators are kernel calls, reshapes and constants."""

    def __init__(self, module: tvm.IRModule, machine: Machine) -> None:
        self._module, self._machine = module, machine
        self._main = module["main"]
        self._kernels: dict[str, Kernel] = {}

    def run(self, *arguments: Array) -> list[Array]:
        """The outputs for the arguments of ``main`` in order."""
        sizes: dict[tirx.Var, int] = {}
        values: dict[relax.Var, Any] = {}
        for parameter, array in zip(self._main.params, arguments, strict=True):
            values[parameter] = array
            for size, actual in zip(parameter.ty.shape, array.shape, strict=True):
                if isinstance(size, tirx.Var):
                    sizes[size] = actual
        for block in self._main.body.blocks:
            for binding in block.bindings:
                values[binding.var] = self._value(binding.value, values, sizes)
        return list(values[self._main.body.body])

    def _value(self, expression: relax.Expr, values: Mapping[relax.Var, Any], sizes: Mapping[tirx.Var, int]) -> Any:
        def value(one: relax.Expr) -> Any:
            return self._value(one, values, sizes)

        if isinstance(expression, relax.Var):
            return values[expression]
        if isinstance(expression, tvm.ir.GenericConst):
            return expression.value.numpy()
        if isinstance(expression, relax.Tuple):
            return [value(field) for field in expression.fields]
        if isinstance(expression, relax.TupleGetItem):
            return value(expression.tuple_value)[expression.index]
        if expression.op.name == "relax.reshape":
            return value(expression.args[0]).reshape(_numbers(expression.args[1].values, sizes))
        assert expression.op.name == "relax.call_tir", f"{expression.op.name} is not run step by step"
        return self._call(expression, value(expression.args[1]), sizes)

    def _call(self, call: relax.Call, arguments: Sequence[Array], sizes: Mapping[tirx.Var, int]) -> Any:
        name = call.args[0].name_hint
        if name not in self._kernels:
            self._kernels[name] = build(self._module[name], self._machine)
        is_tuple = isinstance(call.ty, relax.TupleType)
        types = list(call.ty.fields) if is_tuple else [call.ty]
        outputs = [_poisoned(_numbers(one.shape.values, sizes), str(one.dtype)) for one in types]
        results = self._kernels[name].outputs(len(outputs), *arguments, *outputs)
        return results if is_tuple else results[0]


def _numbers(shape: Sequence[Any], sizes: Mapping[tirx.Var, int]) -> list[int]:
    analyzer = tvm.sym.Analyzer()
    for variable, size in sizes.items():
        analyzer.bind(variable, tirx.IntImm("int64", size))
    return [int(analyzer.simplify(size)) for size in shape]


def _poisoned(shape: Sequence[int], dtype: str) -> Array:
    array = np.empty(shape, getattr(ml_dtypes, dtype, None) or np.dtype(dtype))
    array.reshape(-1).view(np.uint8)[...] = _POISON
    return array
