"""Opset 24 Attention on a GPU: one pass over the keys, in one of two ways by the number of queries."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
from tvm import relax

from moec.targets.base import Eligibility
from moec.targets.cuda.kernels import attention_operands
from moec.targets.cuda.kernels.attention_few import FEW_QUERIES, attention_few
from moec.targets.cuda.kernels.attention_tiled import attention_tiled
from moec.targets.cuda.launch_conditions import launch_if
from moec.targets.tvm.attention import (
    AttentionInputs,
    AttentionProblem,
    attention_inputs,
    attention_problem,
    joined_heads,
)
from moec.targets.tvm.heavy import LoweringContext
from moec.targets.tvm.nodes import record_of, refuse_outputs, static_size
from moec.targets.tvm.selection import Kernel, select


@dataclasses.dataclass(frozen=True)
class AttentionLaunch:
    """An attention of tensors of ``dtype``, for up to ``most`` queries, or any number of them."""

    problem: AttentionProblem
    dtype: str
    most: int | None = None


def _can_attend_few(launch: AttentionLaunch, architecture: str) -> Eligibility:
    if launch.most is None or launch.most > FEW_QUERIES:
        return Eligibility(False, f"more than {FEW_QUERIES} queries; each of them reads the keys again")
    return _one_pass(launch, f"up to {FEW_QUERIES} queries: teams of threads share out the keys of each")


def _can_attend_in_tiles(launch: AttentionLaunch, architecture: str) -> Eligibility:
    return _one_pass(launch, "tiles of 64 rows and 64 keys, float32 multiply-adds")


def _one_pass(launch: AttentionLaunch, how: str) -> Eligibility:
    reason = attention_operands.why_not(launch.problem, launch.dtype)
    return Eligibility(True, f"{how}; no scores in memory") if reason is None else Eligibility(False, reason)


_FORMULA = "y = softmax(q @ k^T * scale + mask) @ v, per head"
KERNELS = (
    Kernel("attention_few", _FORMULA, _can_attend_few),
    Kernel("attention_tiled", _FORMULA, _can_attend_in_tiles),
)
_GENERATORS = {"attention_few": attention_few, "attention_tiled": attention_tiled}


def lower_attention(lowering: LoweringContext, node: ir.Node, architecture: str) -> list[relax.Expr]:
    """Result, present keys and present values.

    Raises UnsupportedError for the scores as an output, for dynamic head sizes and counts, and for a causal mask over
    a cache to which more or fewer keys are added than there are queries.
    """
    refuse_outputs(node, 3)
    inputs = attention_inputs(lowering, node)
    problem = attention_problem(node, inputs)
    batch, heads, queries, _ = inputs.query.ty.shape
    dtype, count = str(inputs.query.ty.dtype), static_size(queries)
    output = relax.TensorType([batch, heads, queries, problem.value_size], dtype)
    result: relax.Var | None = None
    for most, limits in ((FEW_QUERIES, {"most": FEW_QUERIES}), (None, {"least": FEW_QUERIES + 1})):
        if count is not None and (count <= FEW_QUERIES) != (most is not None):
            continue
        chosen = select(KERNELS, AttentionLaunch(problem, dtype, most), architecture)
        kernel = launch_if(_GENERATORS[chosen.kernel.name](problem, dtype), 0, 2, **limits)
        queries_served = f"up to {FEW_QUERIES}" if most else f"from {FEW_QUERIES + 1}"
        record = record_of(node, chosen, {**dataclasses.asdict(problem), "queries": queries_served})
        operands = _operands(lowering, inputs)
        if result is None:
            (result,) = lowering.call_kernel(kernel, operands, [output], record)
        else:
            result = lowering.call_kernel_on(kernel, operands, result, record)
    assert result is not None, "some way is for any number of queries"
    return [joined_heads(lowering, node, result), inputs.key, inputs.value]


def _operands(lowering: LoweringContext, inputs: AttentionInputs) -> list[relax.Expr]:
    """With tensors that are not read in the place of mask and lengths that are not there."""
    mask, lengths = inputs.mask, inputs.lengths
    if mask is None:
        mask = lowering.add_weight("no_mask", (1, 1, 1, 1), "bool", lambda: np.zeros((1, 1, 1, 1), bool))
    if lengths is None:
        lengths = lowering.add_weight("no_lengths", (1,), "int64", lambda: np.zeros(1, np.int64))
    return [inputs.query, inputs.key, inputs.value, mask, lengths]
