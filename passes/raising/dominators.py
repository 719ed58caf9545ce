"""Dominators of a graph's values: the values that all data of a value comes through.

Each value's nearest dominator is found once, from those of the data it is computed from (Cooper, Harvey and Kennedy, A
Simple, Fast Dominance Algorithm, 2001; a graph without cycles needs one pass). A search from each of n gates back to
the start of the graph would take the square of n.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator

import onnx_ir as ir


class Dominators:
    """The tree of dominators, as far as it was asked for. ``counts``: whether a value is data, not a constant or shape.

    A value computed from no data at all, such as random numbers, is on no way."""

    def __init__(self, counts: Callable[[ir.Value], bool]) -> None:
        self._counts = counts
        self._nearest: dict[ir.Value, ir.Value | None] = {}
        self._depth: dict[ir.Value, int] = {}
        """The number of dominators of a value, itself included; 0 for a value computed from no data."""

    def of(self, value: ir.Value) -> Iterator[ir.Value]:
        """``value`` and its other dominators, nearest first."""
        return self.of_all([value])

    def of_all(self, values: Collection[ir.Value]) -> Iterator[ir.Value]:
        """The values that all data of all ``values`` comes through, nearest first."""
        for value in values:
            self._find(value)
        ways = [value for value in values if self._depth[value]]
        dominator = functools.reduce(self._common, ways) if ways else None  # type: ignore[arg-type]
        while dominator is not None:
            yield dominator
            dominator = self._nearest[dominator]

    def forget(self, values: Iterable[ir.Value]) -> None:
        """Forget the results of ``values``, and of all that are computed from these."""
        pending = list(values)
        for value in pending:
            self._depth.pop(value, None)
            self._nearest.pop(value, None)
        while pending:
            after = {output for node in pending.pop().consumers() for output in node.outputs if output in self._depth}
            for value in after:
                del self._depth[value], self._nearest[value]
            pending.extend(after)

    def _find(self, value: ir.Value) -> None:
        pending = [value]
        while pending:
            data = self._data(pending[-1])
            missing = [] if pending[-1] in self._depth else [source for source in data if source not in self._depth]
            pending.extend(missing)
            if not missing:
                self._settle(pending.pop(), data)

    def _data(self, value: ir.Value) -> list[ir.Value]:
        node = value.producer()
        return (
            []
            if node is None
            else [operand for operand in node.inputs if operand is not None and self._counts(operand)]
        )

    def _settle(self, value: ir.Value, data: list[ir.Value]) -> None:
        ways = [source for source in data if self._depth[source]]
        if value.producer() is not None and not ways:
            self._nearest[value], self._depth[value] = None, 0
            return
        nearest = functools.reduce(self._common, ways) if ways else None  # type: ignore[arg-type]
        self._nearest[value] = nearest
        self._depth[value] = 1 if nearest is None else self._depth[nearest] + 1

    def _common(self, left: ir.Value | None, right: ir.Value | None) -> ir.Value | None:
        """The nearest value that dominates both."""
        while left is not right:
            if left is None or right is None:
                return None
            if self._depth[left] >= self._depth[right]:
                left = self._nearest[left]
            else:
                right = self._nearest[right]
        return left
