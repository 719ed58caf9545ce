"""Opset 24 Attention: heads split off, new keys put behind the past ones, one kernel over blocks of keys."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
from tvm import relax

from moec.targets.base import Eligibility
from moec.targets.cpu.kernels.attention import attention
from moec.targets.cpu.kernels.attention_few import FEW_ROWS
from moec.targets.cpu.machine import Machine, tile_of
from moec.targets.tvm.attention import AttentionProblem, attention_inputs, attention_problem, joined_heads
from moec.targets.tvm.heavy import LoweringContext
from moec.targets.tvm.nodes import call, refuse_outputs
from moec.targets.tvm.selection import STORAGE_TYPES, Kernel, by_storage, select


def _blocked(problem: tuple[AttentionProblem, str], machine: Machine) -> Eligibility:
    static, dtype = problem
    if static.mask not in ("", *STORAGE_TYPES, "bool"):
        return Eligibility(False, f"mask of type {static.mask}; the kernel takes bool or a float type")
    heads = f"{static.heads_per_group} heads of {static.head_size} and {static.value_size} per head of keys"
    tasks = f"up to {FEW_ROWS} rows share out the keys, more the rows"
    return by_storage(dtype, f"{heads}; {tasks}; no matrix of scores; {tile_of(machine)}")


KERNELS = (Kernel("attention", "y = softmax(q @ k^T * scale + mask) @ v, per head", _blocked),)


def lower_attention(lowering: LoweringContext, node: ir.Node, machine: Machine) -> list[relax.Expr]:
    """Result, present keys and present values.

    Raises UnsupportedError for the scores as an output, for dynamic head sizes and counts, and for a causal mask over
    a cache to which more or fewer keys are added than there are queries.
    """
    refuse_outputs(node, 3)
    inputs = attention_inputs(lowering, node)
    problem = attention_problem(node, inputs)
    batch, heads, queries, _ = inputs.query.ty.shape
    dtype = str(inputs.query.ty.dtype)
    operands = [inputs.query, inputs.key, inputs.value, inputs.mask, inputs.lengths]
    result = call(
        lowering,
        node,
        attention(problem, machine, dtype),
        [operand for operand in operands if operand is not None],
        [batch, heads, queries, problem.value_size],
        dtype,
        select(KERNELS, (problem, dtype), machine),
        **dataclasses.asdict(problem),
    )
    return [joined_heads(lowering, node, result), inputs.key, inputs.value]
