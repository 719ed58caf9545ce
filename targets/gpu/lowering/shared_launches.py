"""Kernels that share a launch: some blocks of threads run one, others another."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.script import tirx as T
from tvm.tirx.exec_scope import ScopeIdDef

from moec.targets.gpu.kernels.launch import ATTRIBUTES, BEGINS_EARLY, EARLY_ATTRIBUTES, blocks_for, indices_of
from moec.targets.gpu.lowering.element_formula import ElementFormula
from moec.targets.gpu.lowering.inline_producers import inlined_kernel
from moec.targets.gpu.lowering.launch_conditions import LAUNCH_IF
from moec.targets.tvm.kernels.te_kernels import OPAQUE
from moec.targets.tvm.phases.records import HOST_NUMBERS

ELEMENT_THREADS = 256
"""Threads of a block that computes elements, unless it shares a launch with another kernel's blocks."""


@dataclasses.dataclass(frozen=True)
class ThreadBlocks:
    """The blocks of a kernel that is written for threads: ``block`` of ``count``, ``thread`` of ``threads``, and the
    statements of a thread."""

    block: Any
    count: Any
    thread: Any
    threads: int
    steps: tuple[tirx.Stmt, ...]

    @staticmethod
    def of(kernel: tirx.PrimFunc) -> ThreadBlocks:
        block, thread, *steps = kernel.body.body.seq
        of_block, of_thread = getattr(block, "def"), getattr(thread, "def")
        return ThreadBlocks(
            of_block.def_ids[0],
            of_block.extents[0],
            of_thread.def_ids[0],
            int(of_thread.extents[0]),
            tuple(steps),
        )


def element_kernel(formula: ElementFormula, threads: int = ELEMENT_THREADS) -> tirx.PrimFunc:
    """A kernel that computes an element in each thread, of which a block has ``threads``."""
    shape, dtype = formula.shape, str(formula.value.ty.dtype)

    @T.prim_func
    def copy(source_handle: T.handle, result_handle: T.handle):
        T.func_attr(EARLY_ATTRIBUTES)
        source = T.match_buffer(source_handle, shape, dtype)
        result = T.match_buffer(result_handle, shape, dtype)
        T.device_entry()
        count = T.meta_var(_product(shape))
        block = T.cta_id([T.cast(blocks_for(count, threads), "int32")])
        thread = T.thread_id([threads])
        index: T.let = T.cast(block, "int64") * threads + thread
        if index < count:
            at = T.meta_var(tuple(indices_of(index, [T.cast(size, "int64") for size in shape])))
            result[at] = source[at]

    kernel = inlined_kernel(copy, 0, formula, is_viewed=False)
    assert kernel is not None, "the result has all sizes"
    return kernel


def _product(sizes: Sequence[Any]) -> Any:
    count: Any = tirx.IntImm("int64", 1)
    for size in sizes:
        count = count * size
    return count


def kernels_beside(kernels: Sequence[tirx.PrimFunc], inputs: Sequence[int]) -> tirx.PrimFunc:
    """One kernel of several with blocks of the same number of threads, for the sizes of the first. ``inputs``: how many
    parameters of each come before new results; those of all kernels come first."""
    own = [_renamed(kernel, position) for position, kernel in enumerate(kernels)]
    parts = [ThreadBlocks.of(kernel) for kernel in own]
    block, thread = (tirx.Var(name, "int32") for name in ("block", "thread"))
    ends: list[Any] = []
    for part in parts:
        ends.append(part.count if not ends else ends[-1] + part.count)
    body: tirx.Stmt | None = None
    for position in reversed(range(len(parts))):
        steps = _steps(parts[position], block - ends[position - 1] if position else block, thread)
        body = steps if body is None else tirx.IfThenElse(block < ends[position], steps, body)
    ids = [
        tirx.ScopeIdDefStmt(ScopeIdDef([block], [ends[-1]], "kernel", "cta")),
        tirx.ScopeIdDefStmt(ScopeIdDef([thread], [tirx.IntImm("int32", parts[0].threads)], "cta", "thread")),
    ]
    entry = own[0].body
    whole = tirx.AttrStmt(entry.node, entry.attr_key, entry.value, tirx.SeqStmt([*ids, body]))
    parameters = [each for kernel, count in zip(own, inputs, strict=True) for each in kernel.params[:count]]
    parameters += [each for kernel, count in zip(own, inputs, strict=True) for each in kernel.params[count:]]
    attributes: dict[str, Any] = dict(
        EARLY_ATTRIBUTES if all(BEGINS_EARLY in kernel.attrs for kernel in kernels) else ATTRIBUTES
    )
    asked = kernels[0].attrs.get(LAUNCH_IF)
    if asked is not None:
        place = int(asked["parameter"])
        attributes[LAUNCH_IF] = {**asked, "parameter": place if place < inputs[0] else place + sum(inputs[1:])}
    if HOST_NUMBERS in kernels[0].attrs:
        attributes[HOST_NUMBERS] = kernels[0].attrs[HOST_NUMBERS]
    return tirx.PrimFunc(parameters, whole, None).with_attrs({**attributes, "op_pattern": OPAQUE})


def _steps(part: ThreadBlocks, block: Any, thread: Any) -> tirx.Stmt:
    """The statements of a kernel's thread, in which its block and thread have other numbers."""
    instead = {part.block: block, part.thread: thread}
    steps = tirx.SeqStmt(part.steps) if len(part.steps) > 1 else part.steps[0]
    return tvm_ffi.structural_map(steps, [(tvm.ir.Var, lambda variable: instead.get(variable, variable))])


def _renamed(kernel: tirx.PrimFunc, position: int) -> tirx.PrimFunc:
    """The kernel with names of its own for parameters, and for the sizes that only its tensors have, which are int32;
    others are sizes of the model."""
    if position == 0:
        return kernel
    kernel = s_tir.renew_defs(kernel)  # the same kernel may be in a launch twice
    suffix, instead = f"_{position + 1}", dict[Any, Any]()
    for parameter in kernel.params:
        for size in getattr(parameter.ty, "shape", ()):
            if isinstance(size, tirx.Var) and str(size.ty.dtype) == "int32" and size not in instead:
                instead[size] = tirx.Var(f"{size.name}{suffix}", "int32")
    sizes = dict(instead)

    def mapped(value: Any) -> Any:
        return tvm_ffi.structural_map(value, [(tvm.ir.Var, lambda variable: sizes.get(variable, variable))])

    for parameter in kernel.params:
        kind = parameter.ty
        if isinstance(kind, tirx.BufferType):
            shape = [mapped(size) for size in kind.shape]
            instead[parameter] = tirx.decl_buffer(shape, str(kind.dtype), f"{parameter.name}{suffix}")
    body = tvm_ffi.structural_map(kernel.body, [(tvm.ir.Var, lambda variable: instead.get(variable, variable))])
    parameters = [instead.get(parameter, parameter) for parameter in kernel.params]
    return tirx.PrimFunc(parameters, body, kernel.ret_type, kernel.attrs)
