"""Appending to a state that a target holds in place, and conversion between a state and its pages."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import onnx_ir as ir
from tvm import relax

from moec.targets.tvm.heavy.attention_windows import state_windows
from moec.targets.tvm.kernels.kernel import STORAGE_TYPES, Kernel, KernelCall, select
from moec.targets.tvm.lowering.context import LoweringContext
from moec.targets.tvm.lowering.held_states import Holding
from moec.targets.tvm.lowering.nodes import record_of
from moec.targets.tvm.lowering.paged_tensors import AppendProblem, PagedTensor, Places


def holding(
    machine: Any,
    kernel: Kernel,
    conversions: tuple[Kernel, Kernel] | None = None,
    types: Collection[str] = STORAGE_TYPES,
    has_places: bool = False,
    lengths_in_memory: bool = False,
    batches: bool = False,
) -> Holding:
    """A target's way to hold states, made from its kernels.

    ``kernel`` writes to a state: it takes (start, new, pages), or (length, starts, new, pages) if it ``has_places``.
    The first is a number, or a tensor int64[1] with ``lengths_in_memory``.
    ``conversions`` take (start, state, pages) and (pages, state), for states that are given and returned in another
    type than the one of ``types`` in which they are stored; the runtime converts types that they do not."""

    def append(
        lowering: LoweringContext,
        node: ir.Node,
        problem: AppendProblem,
        past: PagedTensor,
        new: relax.Expr,
        places: Places | None,
    ) -> relax.Var:
        chosen, operands = select((kernel,), problem, machine), [new] if places is None else [places.starts, new]
        length = lowering.sizes.expression(past.in_pages if places is None else places.length)
        by_entry = places is not None and places.by_entry
        numbers = [] if lengths_in_memory or by_entry else [length]
        if lengths_in_memory and not by_entry:
            operands = [lowering.in_memory(length), *operands]
        called = KernelCall(chosen, kernel.build(problem), [*operands, past.pages], dataclasses.asdict(problem))
        pages = lowering.emit(past.pages)
        return lowering.call_kernel_on(called.function, operands, [pages], record_of(node, called), numbers)[0]

    def export(lowering: LoweringContext, node: ir.Node, problem: AppendProblem, converts: Kernel) -> str:
        chosen = select((converts,), problem, machine)
        called = KernelCall(chosen, converts.build(problem), [], dataclasses.asdict(problem))
        return lowering.export_kernel(called.function, record_of(node, called))

    def both(lowering: LoweringContext, node: ir.Node, problem: AppendProblem) -> tuple[str, str]:
        assert conversions is not None, "only asked for where there are any"
        store, restore = conversions
        if store.why_not(problem, machine) is not None:
            return "", ""
        return export(lowering, node, problem, store), export(lowering, node, problem, restore)

    converts = None if conversions is None else both
    return Holding(append, state_windows, converts, types, has_places, lengths_in_memory, batches)
