"""Kernels as functions of an element: what is computed for each index of the result, from elements of the inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir.schedule import ScheduleError

_NAME = "kernel"


@dataclasses.dataclass(frozen=True)
class ElementFormula:
    """The elements of a kernel's only result. ``inputs``: the kernel's other parameters; ``shape``: sizes of the
    result; ``value``: an element by its indices, ``axes``."""

    inputs: tuple[Any, ...]
    shape: tuple[Any, ...]
    axes: tuple[tirx.Var, ...]
    value: Any

    @property
    def moves(self) -> bool:
        """Whether an element of the result is an element of an input."""
        return isinstance(self.value, tvm.ir.TensorLoad)

    @property
    def may_be_vectors(self) -> bool:
        """Whether neighbouring elements may be computed by operations on vectors: if they are moved, or sums and
        products in float32, and none is looked up."""
        if _looks_up(self.value):
            return False
        others: list[Any] = []
        plain = (tirx.Add, tirx.Sub, tirx.Mul, tirx.FloatImm)

        def visit(value: Any) -> None:
            if str(value.ty.dtype) == "float32" and not isinstance(value, (*plain, tvm.ir.TensorLoad)):
                others.append(value)
            if isinstance(value, tvm.ir.TensorLoad) and str(value.ty.dtype) != "float32":
                others.append(value)

        tvm_ffi.structural_walk(self.value, [((*plain, tvm.ir.TensorLoad, tvm.ir.Call, tirx.Cast, tirx.Div), visit)])
        return self.moves or (str(self.value.ty.dtype) == "float32" and not others)

    def at(self, indices: Sequence[Any]) -> Any:
        """The element at these int64 indices."""
        places = dict(zip(self.axes, indices, strict=True))
        return tvm_ffi.structural_map(self.value, [(tvm.ir.Var, lambda variable: places.get(variable, variable))])


def formula_of(kernel: tirx.PrimFunc) -> ElementFormula | None:
    """The elements of a kernel without a schedule; None if its result has more to it, such as sums or checks."""
    attrs = kernel.attrs
    if not attrs.get("s_tir") or attrs.get("tirx.is_scheduled") or isinstance(kernel.body, tirx.SeqStmt):
        return None
    schedule = s_tir.Schedule(tvm.IRModule({_NAME: kernel.with_attr("global_symbol", _NAME)}))
    root = schedule.get_sblock("root", _NAME)
    try:
        *others, last = schedule.get_child_blocks(root)
        for block in others:
            schedule.compute_inline(block)
    except (ScheduleError, ValueError):
        return None
    inlined, block = schedule.mod[_NAME], schedule.get(last)
    store = block.body
    axes = tuple(axis.var for axis in block.iter_vars)
    is_spatial = all(axis.iter_type == tirx.IterVar.DataPar for axis in block.iter_vars)
    if not isinstance(store, tirx.BufferStore) or block.init is not None or not is_spatial:
        return None
    *inputs, result = inlined.params
    in_order = len(axes) == len(store.indices) and all(map(_is_same, axes, store.indices))
    if not in_order or not store.buffer.same_as(result):
        return None
    laid_out = {each: _with_layout(each) for each in inputs}
    value = tvm_ffi.structural_map(store.value, [(tvm.ir.Var, lambda variable: laid_out.get(variable, variable))])
    return ElementFormula(tuple(laid_out.values()), tuple(result.ty.shape), axes, value)


def _with_layout(parameter: Any) -> Any:
    """The parameter as kernels written thread by thread have it: a tensor has a layout."""
    kind = parameter.ty
    if not isinstance(kind, tirx.BufferType):
        return parameter
    return tirx.decl_buffer(kind.shape, str(kind.dtype), parameter.name)


def _looks_up(value: Any) -> bool:
    """Whether an index is itself loaded."""
    nested: list[Any] = []

    def visit(load: Any) -> None:
        for index in load.indices:
            tvm_ffi.structural_walk(index, [(tvm.ir.TensorLoad, nested.append)])

    tvm_ffi.structural_walk(value, [(tvm.ir.TensorLoad, visit)])
    return bool(nested)


def _is_same(first: Any, second: Any) -> bool:
    return bool(first.same_as(second))
