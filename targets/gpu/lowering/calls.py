"""Calls of kernels in ``main``, and the memory that they read and write."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from tvm import relax

from moec.targets.tvm.phases.share_views import is_call_of, variables

KERNEL, IN_PLACE, VIEW = "relax.call_tir", "relax.call_tir_inplace", "relax.reshape"


def is_kernel_call(value: relax.Expr) -> bool:
    """Whether this calls a kernel on arguments, without sizes of its own."""
    return (is_call_of(value, KERNEL) or is_call_of(value, IN_PLACE)) and len(value.args) == 2


def results_of(value: relax.Call) -> list[relax.TensorType]:
    """The types of a call's results."""
    return [each for kind in value.ty_args for each in (kind.fields if isinstance(kind, relax.TupleType) else [kind])]


def places_of(value: relax.Call) -> list[int]:
    """For each result the index of the argument whose memory it is in, -1 for new memory."""
    if is_call_of(value, IN_PLACE):
        return [int(place) for place in value.attrs.inplace_indices]
    return [-1] * len(results_of(value))


class MemoryOfCalls:
    """The memory of variables. ``bindings``: all of ``main``, by their variables."""

    def __init__(self, bindings: Mapping[Any, relax.VarBinding]) -> None:
        self._bindings = bindings

    def of(self, variable: Any) -> Any:
        """The first variable in the memory of this one."""
        while variable in self._bindings:
            value, item = self._bindings[variable].value, 0
            if isinstance(value, relax.TupleGetItem):
                whole = self._bindings.get(value.tuple_value)
                if whole is None:
                    return variable
                value, item = whole.value, value.index
            if is_call_of(value, VIEW):
                variable = value.args[0]
            elif is_call_of(value, IN_PLACE) and places_of(value)[item] >= 0:
                variable = value.args[1][places_of(value)[item]]
            else:
                return variable
        return variable

    def read(self, value: relax.Expr) -> set[Any]:
        return {self.of(variable) for variable in variables(value)}

    def written(self, value: relax.Expr) -> set[Any]:
        """The memory that existed before and is written to."""
        if not is_call_of(value, IN_PLACE):
            return set()
        return {self.of(value.args[1][place]) for place in places_of(value) if place >= 0}

    def is_written(self, memory: Collection[Any], bindings: Iterable[relax.VarBinding]) -> bool:
        """Whether one of the bindings writes to any of the memory."""
        return any(not self.written(binding.value).isdisjoint(memory) for binding in bindings)
