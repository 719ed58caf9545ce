"""Values of a graph while it is lowered: Relax tensors, numbers known at compile time, or pages of states.

A value is at least one of these. A static value becomes code only where an operator needs it as a tensor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, te, tirx

from moec.common.errors import UnsupportedError
from moec.common.names import operator_name
from moec.ir.masks.rules import elements
from moec.ir.streaming import LEAST_TABLE
from moec.targets.tvm.lowering.constants import constant_of, dtype_of
from moec.targets.tvm.lowering.function_builder import FunctionBuilder
from moec.targets.tvm.lowering.paged_tensors import BatchTensors, PagedTensor
from moec.targets.tvm.sizes.symbolic import FAR, MAXIMUM_KNOWN_ELEMENTS, StaticValue

INLINE_ELEMENTS = 16
"""Constants up to this size stand in the function itself; larger ones are weights."""


class GraphValues(FunctionBuilder):
    """The values converted so far, with the queries of converters about them."""

    def __init__(self) -> None:
        super().__init__()
        self._tensors: dict[ir.Value, relax.Expr] = {}
        self._static: dict[ir.Value, StaticValue] = {}
        self._paged: dict[ir.Value, PagedTensor] = {}
        self._in_memory: dict[str, relax.Var] = {}
        """Tensors int64[1] with the value of a size, by its expression."""
        self.elements = elements()
        self.batch: BatchTensors | None = None

    def tensor(self, value: ir.Value) -> relax.Expr:
        """The value as a Relax tensor. Static values become code here; large constants become weights."""
        if value not in self._tensors:
            if value in self._paged:
                cached = self._paged[value]
                if self.batch is not None and cached.of_sequences:
                    operands = [cached.pages, self.batch.entries_before]
                    (self._tensors[value],) = self.compute(cached.gathered_entries(), operands, "entries")
                elif self.batch is not None:
                    raise UnsupportedError(
                        f"it reads the state {value.name!r} of a batch, which attention alone can read"
                    )
                else:
                    self._tensors[value] = self.compute(cached.gathered(), [cached.pages], "gathered")[0]
            elif value in self._static:
                self._tensors[value] = self.materialise(self._static[value], value.name or "known")
            elif self.takes_columns(value.producer()):
                raise UnsupportedError(
                    f"it reads {value.name!r}, columns of a state of a batch; expected values that are a state, or the "
                    "first columns of keys"
                )
            else:
                self._tensors[value] = self._constant_tensor(value)
        return self._tensors[value]

    def takes_columns(self, node: ir.Node | None) -> bool:
        """Whether a node splits a state of a batch: attention reads the columns where they lie."""
        is_split = self.batch is not None and node is not None and operator_name(node) == "Split"
        cached = self.paged(node.inputs[0]) if is_split and node is not None else None
        return cached is not None and not cached.of_sequences

    def in_memory(self, size: Any) -> relax.Var:
        key = str(self.sizes.expression(size))
        if key not in self._in_memory:
            self._in_memory[key] = self.materialise(StaticValue.of([size]), "in_memory")
        return self._in_memory[key]

    @contextlib.contextmanager
    def standing_for(self, tensors: Mapping[ir.Value, relax.Expr]) -> Iterator[None]:
        """Context in which the values of ``tensors`` have these tensors instead of their own."""
        own = {value: self.tensor(value) for value in tensors}
        self._tensors.update(tensors)
        try:
            yield
        finally:
            self._tensors.update(own)

    def paged(self, value: ir.Value | None) -> PagedTensor | None:
        return None if value is None else self._paged.get(value)

    def tensor_of_shape(self, value: ir.Value, sizes: Sequence[Any]) -> relax.Expr:
        """The value as a tensor of these sizes; where they may differ, that is checked when the program runs.

        Raises UnsupportedError where they do differ.
        """
        own = self.dimensions(value)
        same = [self.sizes.equal(have, want) for have, want in zip(own, sizes, strict=False)]
        if len(own) != len(sizes) or False in same:
            raise UnsupportedError(f"{value.name!r} has shape {own}; expected {list(sizes)}")
        tensor = self.tensor(value)
        return tensor if all(same) else self.assume_shape(tensor, sizes)

    def _constant_tensor(self, value: ir.Value) -> relax.Expr:
        data = constant_of(value)
        if data is None:
            raise UnsupportedError(f"value {value.name!r} has no producer; expected an input, a constant or a node")
        if data.size == 0:  # TVM cannot read an empty constant back
            return self.materialise(StaticValue(np.empty(tuple(data.shape.numpy()), object), dtype_of(value)))
        if data.size <= INLINE_ELEMENTS:
            return relax.const(data.numpy(), dtype_of(value))
        return self.add_weight(value.name or "constant", tuple(data.shape.numpy()), dtype_of(value), data.numpy)

    def row_table(self, value: ir.Value) -> relax.Var | None:
        """A large constant table, to read rows of by a call of the runtime; None for any other value."""
        data = constant_of(value)
        if data is None or data.nbytes < LEAST_TABLE or not data.shape.numpy()[0]:
            return None
        return self.add_row_table(value.name or "constant", tuple(data.shape.numpy()), dtype_of(value), data.numpy)

    def is_constant(self, value: ir.Value | None) -> bool:
        if value is None:
            return False
        if value in self._static:
            return self._static[value].numbers is not None
        return constant_of(value) is not None

    def constant(self, value: ir.Value | None) -> np.ndarray | None:
        if value is None:
            return None
        if value in self._static:
            return self._static[value].numbers
        data = constant_of(value)
        return None if data is None else data.numpy()

    def static(self, value: ir.Value) -> StaticValue | None:
        """The value at compile time, possibly symbolic, if it is a small integer or bool tensor."""
        if value in self._static:
            return self._static[value]
        data = constant_of(value)
        if data is None or data.size > MAXIMUM_KNOWN_ELEMENTS:
            return None
        array = data.numpy()
        if array.dtype.kind not in "iub" or array.dtype == np.uint64:  # expressions are of int64
            return None
        self._static[value] = StaticValue.of(array, array.dtype.name)
        return self._static[value]

    def shape(self, value: ir.Value) -> list[tirx.Expr]:
        return [self.sizes.expression(size) for size in self.dimensions(value)]

    def dimensions(self, value: ir.Value) -> list[Any]:
        """Like :meth:`shape`, with ints for the static dims."""
        tensor = self._paged.get(value) or self._tensors.get(value)
        if tensor is not None:
            return [self.sizes.simplify(size) for size in tensor.ty.shape]
        if value in self._static:
            return list(self._static[value].elements.shape)
        data = constant_of(value)
        if data is None:
            raise UnsupportedError(f"value {value.name!r} has no producer; expected an input, a constant or a node")
        return [int(size) for size in data.shape.numpy()]

    def dtype(self, value: ir.Value) -> str:
        tensor = self._paged.get(value) or self._tensors.get(value)
        if tensor is not None:
            return str(tensor.ty.dtype)
        if value in self._static:
            return self._static[value].dtype
        return dtype_of(value)

    def numbers(self, value: ir.Value | None, what: str) -> list[int] | None:
        """The elements of a constant integer tensor (axes, split sizes, k); None where the input is absent."""
        if value is None:
            return None
        static = self.static(value)
        array = None if static is None else static.numbers
        if array is None:
            raise UnsupportedError(
                f"{what} comes from {value.name!r}, which is computed at run time; expected a constant"
            )
        return [int(element) for element in array.flat]

    def runtime_sizes(self, value: ir.Value) -> list[Any]:
        """The elements of a rank-0 or rank-1 integer tensor as sizes.

        An element that is not known to be 0 or more is checked at run time and becomes a new symbolic size."""
        integers = self.runtime_integers(value)
        requirements = [
            requirement
            for integer in integers
            for requirement in self.require(integer >= 0, f"a size in {value.name!r} is negative", "0 or more")
        ]
        return self.checked_sizes(integers, requirements, value.name or "size")

    def runtime_integers(self, value: ir.Value) -> list[Any]:
        """The elements of a rank-0 or rank-1 integer tensor. Where they are computed at run time, each becomes a new
        symbolic integer, read from the tensor at run time and clamped to [-FAR, FAR] (:data:`FAR`)."""
        static = self.static(value)
        if static is not None:
            return [self.sizes.simplify(element) for element in static.elements.flat]
        dimensions = self.dimensions(value)
        if len(dimensions) > 1:
            raise UnsupportedError(
                f"{value.name!r} holds integers in {len(dimensions)} dimensions; expected at most one"
            )
        (count,) = dimensions or [1]
        if not isinstance(count, int):
            raise UnsupportedError(f"{value.name!r} holds a shape of dynamic rank; expected a fixed number of dims")
        tensor = self.tensor(value)

        def cut(source: te.Tensor) -> te.Tensor:
            def element(i: tirx.Expr) -> tirx.Expr:
                number = (source(i) if source.shape else source()).astype("int64")
                far = tirx.IntImm("int64", FAR)
                return tirx.max(tirx.min(number, far), -far)

            return te.compute((count,), element, name="integers")

        (flat,) = self.compute(cut, [tensor], "integers")
        return self._read(flat, [self.sizes.integer(f"{value.name}_{position}") for position in range(count)])
