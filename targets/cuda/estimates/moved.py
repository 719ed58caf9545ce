"""The numbers of each tensor that a kernel moves, counted in its TIR.

The count of a load or store is the product of the extents of the loops and threads around it; conditions are ignored. A
gather so moves as many rows of a table as it looks up, and a slice its part. A tensor with an access whose count does
not follow from sizes, or that is read by other instructions than loads, is not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from moec.common.guards import parse_size
from moec.common.kernel_sizes import LARGEST
from moec.targets.tvm.sizes.c_expressions import in_c

_EXTENT = "thread_extent"
_ONE = tirx.IntImm("int64", 1)


def moved_numbers(functions: Iterable[tuple[tirx.PrimFunc, Mapping[Any, str]]]) -> dict[str, str]:
    """The most numbers of each tensor that a kernel moves, as C expressions of its sizes. ``functions``: its functions
    on the device, each with the tensors that its parameters point to, by the names that the kernel gives them."""
    counts = dict[str, Any]()
    for function, names in functions:
        tensors = _tensors(function, names)
        for buffer, count in _Accesses(function).counts:
            if buffer in tensors:
                tensor = tensors[buffer]
                before = counts.get(tensor, tirx.IntImm("int64", 0))
                counts[tensor] = None if count is None or before is None else before + count
    texts = {tensor: _text(count) for tensor, count in counts.items() if count is not None}
    return {tensor: text for tensor, text in texts.items() if text}


class _Accesses:
    """The loads and stores of a function: ``counts`` has the buffer of each, and the numbers that it moves; None if
    that does not follow from the function's sizes."""

    def __init__(self, function: tirx.PrimFunc) -> None:
        self.counts: list[tuple[Any, Any]] = []
        self._sizes = set(function.params)
        self._visit(function.body, _ONE)

    def _visit(self, statement: Any, times: Any) -> None:
        """``times``: how often the statement runs; None if unknown."""
        if isinstance(statement, tirx.SeqStmt):
            for part in statement.seq:
                self._visit(part, times)
        elif isinstance(statement, tirx.For):
            self._visit(statement.body, self._inside(times, statement.extent))
        elif isinstance(statement, tirx.AttrStmt):
            bound = statement.attr_key == _EXTENT
            self._visit(statement.body, self._inside(times, statement.value) if bound else times)
        elif isinstance(statement, tirx.While):
            self._visit(statement.body, None)
        elif isinstance(statement, tirx.IfThenElse):
            self._add(statement.condition, times)
            self._visit(statement.then_case, times)
            self._visit(statement.else_case, times)
        elif statement is not None:
            self._add(statement, times)

    def _inside(self, times: Any, extent: Any) -> Any:
        """The count inside a loop of that extent, or inside a binding to that many threads."""
        unknown: list[Any] = []
        tvm_ffi.structural_walk(
            extent, [(tvm.ir.Var, lambda variable: None if variable in self._sizes else unknown.append(variable))]
        )
        return None if times is None or unknown else times * tirx.Cast("int64", extent)

    def _add(self, statement: Any, times: Any) -> None:
        def add(buffer: Any, number: Any) -> None:
            lanes = tvm.DataType(str(number.ty.dtype)).lanes
            self.counts.append((buffer, None if times is None else times * lanes))

        tvm_ffi.structural_walk(
            statement,
            [
                (tvm.ir.TensorLoad, lambda load: add(load.source, load)),
                (tirx.BufferStore, lambda store: add(store.buffer, store.value)),
            ],
        )


def _tensors(function: tirx.PrimFunc, names: Mapping[Any, str]) -> dict[Any, str]:
    """The kernel's names of the function's tensors, by buffer; views of a tensor have its name."""
    tensors = dict[Any, str]()

    def declare(declaration: Any) -> None:
        data = declaration.data
        source = data.args[0] if isinstance(data, tvm.ir.Call) else data  # the address of a buffer, or a parameter
        if source in tensors or source in names:
            tensors[declaration.buffer] = tensors[source] if source in tensors else names[source]

    tvm_ffi.structural_walk(function.body, [(tirx.DeclBuffer, declare)])
    return tensors


def _text(count: Any) -> str:
    """The count in C; empty if it cannot be written so that it is read again."""
    text = in_c(tirx.Min(count, tirx.IntImm("int64", LARGEST)))
    try:
        parse_size(text.replace("/", "//"))
    except ValueError:
        return ""
    return text
