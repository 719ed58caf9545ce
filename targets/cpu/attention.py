"""Opset 24 Attention on a CPU."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
from tvm import relax

from moec.common.work import AttentionWork
from moec.targets.cpu.hardware.machine import Machine
from moec.targets.cpu.kernels.attention import ATTENTION
from moec.targets.tvm.heavy.attention import AttentionInputs, AttentionProblem
from moec.targets.tvm.kernels.kernel import KernelCall, select
from moec.targets.tvm.lowering.context import LoweringContext
from moec.targets.tvm.lowering.nodes import call


def attend(
    machine: Machine,
    lowering: LoweringContext,
    node: ir.Node,
    inputs: AttentionInputs,
    problem: AttentionProblem,
    output: relax.TensorType,
) -> relax.Expr:
    """The result. At run time, the number of rows decides how the work is divided among threads."""
    dtype = str(output.dtype)
    chosen = select((ATTENTION,), (problem, dtype), machine)
    called = KernelCall(
        chosen,
        ATTENTION.build(problem, machine, dtype),
        [operand for operand in inputs.operands if operand is not None],
        dataclasses.asdict(problem),
        work=AttentionWork(problem.causal, problem.has_lengths, bool(problem.paged), problem.values_in_keys),
    )
    return call(lowering, node, called, list(output.shape), dtype)
