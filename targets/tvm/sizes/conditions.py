"""Conditions on sizes that were found to hold before a value is computed, so that no kernel checks them again.

A condition has been checked where a value follows from one of a kernel that checks it, for such a kernel stops the run
where it does not hold. The order in which kernels run says nothing: other kernels may be moved.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import tvm_ffi
from tvm import relax

from moec.targets.tvm.kernels.te_kernels import Requirement

TRACKED = 64
"""Conditions of one program that are followed; later ones are checked wherever they are required."""


class CheckedConditions:
    def __init__(self) -> None:
        self._bits: dict[tvm_ffi.StructuralKey, int] = {}
        self._held: dict[Any, int] = {}
        """The bits of the conditions that hold where a variable has been computed."""

    def follow(self, variable: relax.Var, expression: relax.Expr) -> None:
        """Note what ``variable`` is computed from."""
        if self._bits and (bits := self._where(_operands(expression))):
            self._held[variable] = self._held.get(variable, 0) | bits

    def unchecked(self, requirements: Sequence[Requirement], operands: Iterable[relax.Expr]) -> list[Requirement]:
        """The conditions that have not been checked where all ``operands`` have been computed."""
        bits = self._where(operands) if requirements else 0
        return [requirement for requirement in requirements if not bits & self._bit(requirement)]

    def check(self, requirements: Sequence[Requirement], results: Iterable[relax.Var]) -> None:
        """Note that the kernel of ``results`` checks these."""
        for requirement in requirements:
            if len(self._bits) < TRACKED:
                self._bits.setdefault(tvm_ffi.StructuralKey(requirement.condition), 1 << len(self._bits))
        checked = sum({self._bit(requirement) for requirement in requirements})
        if checked:
            for result in results:
                self._held[result] = self._held.get(result, 0) | checked

    def _bit(self, requirement: Requirement) -> int:
        return self._bits.get(tvm_ffi.StructuralKey(requirement.condition), 0)

    def _where(self, operands: Iterable[relax.Expr]) -> int:
        bits = 0
        for operand in operands:
            bits |= self._held.get(operand, 0)
        return bits


def _operands(expression: relax.Expr) -> Iterator[relax.Expr]:
    """The variables that an expression reads, and its other operands."""
    if isinstance(expression, relax.Tuple):
        yield from expression.fields
    elif isinstance(expression, relax.TupleGetItem):
        yield expression.tuple_value
    elif isinstance(expression, relax.Call):
        for argument in expression.args:
            yield from _operands(argument) if isinstance(argument, relax.Tuple) else [argument]
