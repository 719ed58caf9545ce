"""Lengths of states in use as numbers that kernels read in the device's memory.

A captured run repeats its launches with the sizes of its capture. It serves states of other lengths if it is captured
for the longest that its pages hold, and kernels find the actual lengths in memory::

    y[i] = x[i] + P        for i < P + S
        ->
    y[i] = x[i] + in_use_P[0] if i < in_use_P[0] + S else 0        for i < P + S

1. A length in an element becomes a load. Lengths in the shapes of tensors stay: they are strides and bounds of memory.
2. Elements behind the actual size of a result are 0: those that a length computes would read outside of tensors.
3. A maximum, or a sum of integers, over an axis with a length takes the actual elements alone. Other reductions over
   such an axis add in an order that follows from its size, so their results would not be the same bit for bit.

Kernels that compute nothing from a length itself stay as they are: what they make of padding is padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, s_tir, te, tirx

from moec.targets.tvm.kernels.te_kernels import Requirement, prim_func

_REDUCED = 2
"""TVM's number of an axis that a block reduces."""
_EXACT = (tirx.Max, tirx.Min)


def mentions(expression: Any, lengths: Sequence[tirx.Var]) -> bool:
    """Whether an expression of sizes contains one of the lengths."""
    if not lengths or not isinstance(expression, tirx.Expr):
        return False
    return any(variable.same_as(length) for variable in tirx.analysis.undefined_vars(expression) for length in lengths)


def has_length(tensor: Any, lengths: Sequence[tirx.Var]) -> bool:
    """Whether the shape of a tensor's type contains one of the lengths."""
    sizes = getattr(tensor, "shape", None)
    return bool(lengths) and sizes is not None and any(mentions(size, lengths) for size in sizes)


class LengthsInMemory:
    """The lengths that a program takes as tensors, and the nodes for which that is not enough.

    ``parameters``: the tensors by length; empty where kernels get lengths as numbers. ``fixed``: the names of nodes
    whose results follow from a length in another way than by a load, so that a captured run serves that length alone.
    """

    def __init__(self) -> None:
        self.parameters: dict[tirx.Var, relax.Var] = {}
        self.fixed: dict[str, None] = {}
        self._ignored: set[relax.Var] = set()

    def kernel(
        self, inputs: list[te.Tensor], outputs: list[te.Tensor], requirements: Sequence[Requirement], node: str
    ) -> tuple[tirx.PrimFunc, list[Any]]:
        """The kernel of a TE computation that reads lengths in memory, and its arguments after those of ``inputs``."""
        read, is_same = self._read_by(inputs, outputs)
        if not is_same:
            self.fixed[node] = None
        lengths = [*self.parameters]
        kept = [lengths[position] for position in read]
        tensors = [te.placeholder([1], "int64", name="in_use") for _ in kept]

        def rewritten(kernel: tirx.PrimFunc) -> tirx.PrimFunc:
            return with_loads(kernel, kept, kernel.params[len(inputs) : len(inputs) + len(kept)])[0]

        kernel, extra = prim_func([*inputs, *tensors], outputs, requirements, rewritten)
        return kernel, [*(self.parameters[length] for length in kept), *extra]

    def note(self, arguments: Sequence[relax.Expr], outputs: Sequence[relax.TensorType], node: str) -> None:
        """Note a node whose kernel may compute something of the padding of its arguments, or of their sizes."""
        types = [*(argument.ty for argument in arguments if argument not in self._ignored), *outputs]
        if any(has_length(tensor, [*self.parameters]) for tensor in types):
            self.fixed[node] = None

    def ignored(self, view: relax.Var) -> relax.Var:
        """Say of a tensor that its readers know from elsewhere which elements there are, and return it."""
        self._ignored.add(view)
        return view

    def _read_by(self, inputs: list[te.Tensor], outputs: list[te.Tensor]) -> tuple[list[int], bool]:
        if not self.parameters:
            return [], True
        stand_ins = [te.placeholder([1], "int64", name="in_use") for _ in self.parameters]
        kernel = te.create_prim_func([*inputs, *stand_ins, *outputs], "int64")
        tensors = kernel.params[len(inputs) : len(inputs) + len(stand_ins)]
        _, read, is_same = with_loads(kernel, [*self.parameters], tensors)
        return read, is_same


def with_loads(
    kernel: tirx.PrimFunc, lengths: Sequence[tirx.Var], tensors: Sequence[tirx.Var]
) -> tuple[tirx.PrimFunc, list[int], bool]:
    """Let a kernel of tensor expressions read ``lengths`` in its parameters ``tensors``, int64[1] each.

    Returns the kernel, the positions of the tensors that it reads, and whether it computes the same for the actual
    elements whatever the padding is."""
    moved = _WithLoads(lengths, [tirx.BufferLoad(tensor, [0]) for tensor in tensors])
    body = tvm_ffi.structural_map(kernel.body, [(s_tir.SBlock, moved.block)])
    return (kernel.with_body(body), sorted(moved.read), moved.is_same) if moved.read else (kernel, [], moved.is_same)


class _WithLoads:
    """Blocks of one kernel with loads in place of lengths. ``read``: positions of the lengths that are read."""

    def __init__(self, lengths: Sequence[tirx.Var], loads: Sequence[tvm.ir.TensorLoad]) -> None:
        self._lengths, self._loads = lengths, loads
        self.read: set[int] = set()
        self.is_same = True

    def block(self, block: s_tir.SBlock) -> s_tir.SBlock:
        reduced = [axis for axis in block.iter_vars if int(axis.iter_type) == _REDUCED]
        padded = [axis for axis in reduced if mentions(axis.dom.extent, self._lengths)]
        store = block.body
        if not isinstance(store, tirx.BufferStore):  # several results at once, such as a maximum and its place
            used = tirx.analysis.undefined_vars(store, []) if block.iter_vars else []
            self.is_same = self.is_same and not padded and not any(mentions(size, self._lengths) for size in used)
            return block
        if padded and not _is_exact(store, block.init):
            self.is_same = False
            return block
        if not padded and not any(mentions(part, self._lengths) for part in (store.value, *store.indices)):
            return block
        value = self._actual(store.value)
        if padded:
            conditions = [axis.var < self._actual(axis.dom.extent) for axis in padded]
            value = type(value)(value.a, _if_all(conditions, value.b, block.init.value))
        elif not reduced:
            pairs = zip(store.indices, store.buffer.shape, strict=True)
            inside = [index < self._actual(size) for index, size in pairs if mentions(size, self._lengths)]
            value = _if_all(inside, value, tirx.const(0, str(value.ty.dtype)))
        return _with_value(block, value)

    def _actual(self, expression: Any) -> Any:
        """The expression with loads in place of lengths."""

        def load(variable: tirx.Var) -> Any:
            for position, length in enumerate(self._lengths):
                if variable.same_as(length):
                    self.read.add(position)
                    return self._loads[position]
            return variable

        return tvm_ffi.structural_map(expression, [(tvm.ir.Var, load)])


def _is_exact(store: tirx.BufferStore, init: Any) -> bool:
    """Whether a reduction has the same result in any order: a maximum, a minimum, or a sum of integers."""
    value = store.value
    exact = isinstance(value, _EXACT) or (isinstance(value, tirx.Add) and "int" in str(value.ty.dtype))
    return exact and isinstance(init, tirx.BufferStore) and _is_load_of(value.a, store)


def _if_all(conditions: Sequence[Any], value: Any, otherwise: Any) -> Any:
    for condition in conditions:
        value = tirx.if_then_else(condition, value, otherwise)
    return value


def _is_load_of(expression: Any, store: tirx.BufferStore) -> bool:
    return isinstance(expression, tvm.ir.TensorLoad) and expression.source.same_as(store.buffer)


def _with_value(block: s_tir.SBlock, value: Any) -> s_tir.SBlock:
    """The block that stores another value."""
    store, loads = block.body, list[tvm.ir.TensorLoad]()
    tvm_ffi.structural_walk(value, [(tvm.ir.TensorLoad, loads.append)])
    others = [load for load in loads if not load.source.same_as(store.buffer)]
    first = [load for at, load in enumerate(others) if not any(load.source.same_as(o.source) for o in others[:at])]
    return s_tir.SBlock(
        block.iter_vars,
        [_region(load, [other for other in others if other.source.same_as(load.source)]) for load in first],
        block.writes,
        block.name_hint,
        tirx.BufferStore(store.buffer, value, store.indices),
        block.init,
        block.alloc_buffers,
        block.match_buffers,
        block.annotations,
    )


def _region(load: tvm.ir.TensorLoad, loads: Sequence[tvm.ir.TensorLoad]) -> Any:
    """Region that loads of one tensor read: an element if all read the same one, else all, since places may follow from
    numbers in memory."""
    if all(tvm_ffi.structural_equal(load.indices, other.indices) for other in loads):
        ranges = [tvm.ir.Range.from_min_extent(index, 1) for index in load.indices]
    else:
        ranges = [tvm.ir.Range(0, size) for size in load.source.shape]
    return tirx.BufferRegion(load.source, ranges)
