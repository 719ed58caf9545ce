"""Opset 24 Attention: heads split off, the mask brought to four axes, one streaming kernel."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
from tvm import relax

from moec.errors import UnsupportedError
from moec.targets.base import Eligibility
from moec.targets.cpu.kernels.attention import AttentionProblem, attention
from moec.targets.cpu.machine import Machine
from moec.targets.cpu.nodes import call, refuse_outputs, reshape, static_size, transpose
from moec.targets.cpu.selection import STORAGE_TYPES, Kernel, by_storage, select, tile_of
from moec.targets.tvm.attributes import attribute, optional_input, required_input
from moec.targets.tvm.heavy import LoweringContext

_REFUSED_INPUTS = {4: "past_key", 5: "past_value", 6: "nonpad_kv_seqlen"}


def _streaming(problem: tuple[AttentionProblem, str], machine: Machine) -> Eligibility:
    static, dtype = problem
    if static.mask not in (*STORAGE_TYPES, "bool"):
        return Eligibility(False, f"mask of type {static.mask}; the kernel takes bool or a float type")
    heads = f"heads of {static.head_size} and {static.value_size}"
    return by_storage(dtype, f"{heads}; streams over blocks of keys, no matrix of scores; {tile_of(machine)}")


KERNELS = (Kernel("attention", "y = softmax(q @ k^T * scale + mask) @ v, per head", _streaming),)


def lower_attention(lowering: LoweringContext, node: ir.Node, machine: Machine) -> relax.Expr:
    """Raises UnsupportedError for a cache inside the operator, for optional outputs and for dynamic head sizes."""
    refuse_outputs(node, 1)
    for position, name in _REFUSED_INPUTS.items():
        if optional_input(node, position) is not None:
            raise UnsupportedError(f"input {name} is not supported; concatenate the cache outside the operator")
    rank = len(lowering.shape(required_input(node, 0)))
    query = _heads(lowering, node, 0, "q_num_heads")
    key, value = _heads(lowering, node, 1, "kv_num_heads"), _heads(lowering, node, 2, "kv_num_heads")
    mask = _mask(lowering, node, query, key)
    batch, heads, queries, _ = query.ty.shape
    problem = _problem(node, query, value, mask)
    dtype = str(query.ty.dtype)
    chosen = select(KERNELS, (problem, dtype), machine)
    shape = [batch, heads, queries, problem.value_size]
    result = call(
        lowering,
        node,
        attention(problem, machine, dtype),
        [query, key, value, mask],
        shape,
        dtype,
        chosen,
        head_size=problem.head_size,
        value_size=problem.value_size,
        causal=problem.causal,
        mask=problem.mask,
    )
    if rank == 4:
        return result
    joined = transpose(lowering, result, [0, 2, 1, 3])
    return reshape(lowering, joined, [batch, queries, heads * problem.value_size])


def _heads(lowering: LoweringContext, node: ir.Node, position: int, count: str) -> relax.Expr:
    """An input as [B, heads, S, D]; a rank-3 input [B, S, heads * D] is split by the attribute ``count``."""
    tensor = lowering.tensor(required_input(node, position))
    shape = list(tensor.ty.shape)
    if len(shape) == 4:
        return tensor
    heads, width = attribute(node, count, 0), static_size(shape[2])
    if not heads or width is None or width % heads:
        raise UnsupportedError(
            f"input {position} of rank 3 cannot be split into {heads} heads; expected {count} to divide it"
        )
    split = reshape(lowering, tensor, [shape[0], shape[1], heads, width // heads])
    return transpose(lowering, split, [0, 2, 1, 3])


def _mask(lowering: LoweringContext, node: ir.Node, query: relax.Expr, key: relax.Expr) -> relax.Expr:
    """The mask as [B|1, H|1, S|1, P]; zeros to add if there is none."""
    keys = key.ty.shape[2]
    given = optional_input(node, 3)
    if given is None:
        return lowering.emit(relax.op.zeros([1, 1, 1, keys], "float32"))
    mask = lowering.tensor(given)
    shape = list(mask.ty.shape)
    shape = [1] * (4 - len(shape)) + shape
    mask = reshape(lowering, mask, shape)
    if static_size(shape[3]) == 1 and static_size(keys) != 1:
        mask = lowering.emit(relax.op.broadcast_to(mask, [*shape[:3], keys]))
    return mask


def _problem(node: ir.Node, query: relax.Expr, value: relax.Expr, mask: relax.Expr) -> AttentionProblem:
    head_size, value_size = static_size(query.ty.shape[3]), static_size(value.ty.shape[3])
    if head_size is None or value_size is None:
        raise UnsupportedError("the size of a head is dynamic; expected a static last axis of query and value")
    scale: Any = attribute(node, "scale", None)
    broadcast = [static_size(size) == 1 for size in mask.ty.shape]
    return AttentionProblem(
        head_size=head_size,
        value_size=value_size,
        scale=float(scale) if scale is not None else 1 / math.sqrt(head_size),
        causal=bool(attribute(node, "is_causal", 0)),
        softcap=float(attribute(node, "softcap", 0.0)),
        mask=str(mask.ty.dtype),
        mask_broadcast=(broadcast[0], broadcast[1], broadcast[2]),
    )
