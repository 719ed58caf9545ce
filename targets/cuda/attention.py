"""Opset 24 Attention on a GPU: one pass over the keys, by a kernel for few queries or one for many."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
from tvm import relax

from moec.targets.base import Eligibility
from moec.targets.cuda.kernels import attention_mma, attention_operands, attention_tiled
from moec.targets.cuda.kernels.attention_few import FEW_QUERIES, attention_few
from moec.targets.cuda.launch_ways import Sizes, Way, call_ways
from moec.targets.tvm.attention import (
    AttentionInputs,
    AttentionProblem,
    attention_inputs,
    attention_problem,
    joined_heads,
)
from moec.targets.tvm.heavy import LoweringContext
from moec.targets.tvm.nodes import record_of, refuse_outputs
from moec.targets.tvm.selection import Kernel, select


@dataclasses.dataclass(frozen=True)
class AttentionLaunch:
    """An attention of tensors of ``dtype``, for some numbers of queries."""

    problem: AttentionProblem
    dtype: str
    queries: Sizes


def _can_attend_few(launch: AttentionLaunch, architecture: str) -> Eligibility:
    if launch.queries.most > FEW_QUERIES:
        return Eligibility(False, f"more than {FEW_QUERIES} queries; each of them reads the keys again")
    return _one_pass(launch, f"up to {FEW_QUERIES} queries: teams of threads share out the keys of each")


def _can_use_tensor_cores(launch: AttentionLaunch, architecture: str) -> Eligibility:
    reason = attention_mma.why_not(launch.problem, launch.dtype)
    if reason is not None:
        return Eligibility(False, reason)
    return _one_pass(launch, "tensor cores (mma.sync), tiles of 64 rows and 64 keys by cp.async")


def _can_attend_in_tiles(launch: AttentionLaunch, architecture: str) -> Eligibility:
    return _one_pass(launch, "tiles of 64 rows and 64 keys, float32 multiply-adds")


def _one_pass(launch: AttentionLaunch, how: str) -> Eligibility:
    reason = attention_operands.why_not(launch.problem, launch.dtype)
    return Eligibility(True, f"{how}; no scores in memory") if reason is None else Eligibility(False, reason)


_FORMULA = "y = softmax(q @ k^T * scale + mask) @ v, per head"
KERNELS = (
    Kernel("attention_few", _FORMULA, _can_attend_few),
    Kernel("attention_mma", _FORMULA, _can_use_tensor_cores),
    Kernel("attention_tiled", _FORMULA, _can_attend_in_tiles),
)
_GENERATORS = {
    "attention_few": attention_few,
    "attention_mma": attention_mma.attention_mma,
    "attention_tiled": attention_tiled.attention_tiled,
}

_TILES = {
    "attention_mma": f"{attention_mma.ROWS} rows x {attention_mma.KEYS} keys",
    "attention_tiled": f"{attention_tiled.ROWS} rows x {attention_tiled.KEYS} keys, {attention_tiled.DEPTH} at a time",
}
"""What the artifact says about the tile of a block of threads."""


def lower_attention(lowering: LoweringContext, node: ir.Node, architecture: str) -> list[relax.Expr]:
    """Result, present keys and present values.

    Raises UnsupportedError for the scores as an output, for dynamic head sizes and counts, and for a causal mask over
    a cache to which more or fewer keys are added than there are queries.
    """
    refuse_outputs(node, 3)
    inputs = attention_inputs(lowering, node)
    problem = attention_problem(node, inputs)
    batch, heads, queries, _ = inputs.query.ty.shape
    dtype = str(inputs.query.ty.dtype)
    ways = [
        _way(node, AttentionLaunch(problem, dtype, sizes), architecture)
        for sizes in (Sizes(most=FEW_QUERIES), Sizes(least=FEW_QUERIES + 1))
    ]
    output = relax.TensorType([batch, heads, queries, problem.value_size], dtype)
    result = call_ways(lowering, ways, 2, _operands(lowering, inputs), output)
    return [joined_heads(lowering, node, result), inputs.key, inputs.value]


def _way(node: ir.Node, launch: AttentionLaunch, architecture: str) -> Way:
    chosen = select(KERNELS, launch, architecture)
    name, attributes = chosen.kernel.name, {**dataclasses.asdict(launch.problem), "queries": str(launch.queries)}
    if name in _TILES:
        attributes["tile"] = _TILES[name]
    return Way(_GENERATORS[name](launch.problem, launch.dtype), record_of(node, chosen, attributes), launch.queries)


def _operands(lowering: LoweringContext, inputs: AttentionInputs) -> list[relax.Expr]:
    """With tensors that are not read in the place of mask and lengths that are not there."""
    mask, lengths = inputs.mask, inputs.lengths
    if mask is None:
        mask = lowering.add_weight("no_mask", (1, 1, 1, 1), "bool", lambda: np.zeros((1, 1, 1, 1), bool))
    if lengths is None:
        lengths = lowering.add_weight("no_lengths", (1,), "int64", lambda: np.zeros(1, np.int64))
    return [inputs.query, inputs.key, inputs.value, mask, lengths]
