"""States that a CPU holds in place."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
from tvm import relax

from moec.targets.cpu.kernels.append import APPEND
from moec.targets.cpu.machine import Machine
from moec.targets.tvm.held_states import AppendProblem, HeldTensor
from moec.targets.tvm.kernel import KernelCall, select
from moec.targets.tvm.lowering import Lowering
from moec.targets.tvm.nodes import record_of


def append_state(
    machine: Machine, lowering: Lowering, node: ir.Node, problem: AppendProblem, past: HeldTensor, new: relax.Expr
) -> relax.Var:
    """The pages of ``past`` with ``new`` behind what is in use."""
    chosen = select((APPEND,), problem, machine)
    called = KernelCall(chosen, APPEND.build(problem), [new, past.pages], dataclasses.asdict(problem))
    pages = lowering.emit(past.pages)
    record = record_of(node, called)
    return lowering.call_kernel_on(called.function, [new], [pages], record, [lowering.sizes.expression(past.length)])[0]
