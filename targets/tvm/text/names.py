"""Names of variables in printed TIR: unique among those that are visible at a place."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import tvm


class VariableNames:
    """Names by variable. A variable that has been named keeps its name until the scope of its definition ends."""

    def __init__(self) -> None:
        self._names: dict[tvm.ir.Var, str] = {}
        self._taken: set[str] = set()

    def __call__(self, variable: tvm.ir.Var, own: str = "") -> str:
        """The variable's name: its ``own``, or that with a number where the name is taken."""
        name = self._names.get(variable)
        return self._define(variable, own or variable.name or "v") if name is None else name

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Context after which the names defined in it are free again."""
        names, taken = dict(self._names), set(self._taken)
        yield
        self._names, self._taken = names, taken

    def _define(self, variable: tvm.ir.Var, own: str) -> str:
        numbered = (f"{own}_{number}" for number in itertools.count(1))
        name = next(name for name in itertools.chain([own], numbered) if name not in self._taken)
        self._names[variable] = name
        self._taken.add(name)
        return name
