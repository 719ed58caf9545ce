"""Constants in float64, kept while graphs that multiply by them run many times: reading a weight once costs as much as
a few products with it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

WIDENED_FROM = 3
"""The run of a graph from which on its weights are kept in float64: that costs more than a run on a few rows does."""

Array = np.ndarray[Any, Any]
MOST_BYTES = 1 << 29
"""Bytes of widened weights that are cached together. Further weights are widened whenever they are used, piece by
piece."""


class WidenedConstants:
    """Arrays that were asked for last, of at most :data:`MOST_BYTES`."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._arrays: OrderedDict[ir.Value, Array] = OrderedDict()

    def all_of(self, values: Sequence[ir.Value], arrays: Mapping[str, Any]) -> dict[str, Array]:
        """The arrays of several values in float64, by name."""
        return {str(value.name): self.of(value, arrays[str(value.name)]) for value in values}

    def of(self, value: ir.Value, array: Array) -> Array:
        """The array in float64, or as it is where that takes too much memory."""
        if value not in self._arrays:
            size = array.size * np.dtype(np.float64).itemsize
            if size > self._most_bytes:
                return array
            self._arrays[value], self._bytes = array.astype(np.float64), self._bytes + size
        self._arrays.move_to_end(value)
        while self._bytes > self._most_bytes:
            self._bytes -= self._arrays.popitem(last=False)[1].nbytes
        return self._arrays[value]


def only_multiplied(nodes: Sequence[ir.Node]) -> set[ir.Value | None]:
    """Inputs of these nodes that only MatMul reads."""
    multiplied, read = set[ir.Value | None](), set[ir.Value | None]()
    for node in nodes:
        (multiplied if (node.domain, node.op_type) == ("", "MatMul") else read).update(node.inputs)
    return multiplied - read
