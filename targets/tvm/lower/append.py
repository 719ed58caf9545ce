"""Writing behind a state that a target holds in place."""

from __future__ import annotations

import dataclasses
from typing import Any

import onnx_ir as ir
from tvm import relax

from moec.targets.tvm.held_states import Append, AppendProblem, HeldTensor
from moec.targets.tvm.kernel import Kernel, KernelCall, select
from moec.targets.tvm.lowering import Lowering
from moec.targets.tvm.nodes import record_of


def appending(kernel: Kernel, machine: Any) -> Append:
    """How a target writes: by that kernel ``(start, new, pages)``."""

    def append(
        lowering: Lowering, node: ir.Node, problem: AppendProblem, past: HeldTensor, new: relax.Expr
    ) -> relax.Var:
        chosen = select((kernel,), problem, machine)
        called = KernelCall(chosen, kernel.build(problem), [new, past.pages], dataclasses.asdict(problem))
        pages, start = lowering.emit(past.pages), lowering.sizes.expression(past.length)
        return lowering.call_kernel_on(called.function, [new], [pages], record_of(node, called), [start])[0]

    return append
