"""Opset 24 Attention on a GPU: one pass over the keys, by a kernel for few queries or one for many."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
from tvm import relax

from moec.targets.base import SizeRange
from moec.targets.cuda.kernels.attention_few import ATTENTION_FEW, FEW_QUERIES
from moec.targets.cuda.kernels.attention_mma import ATTENTION_MMA
from moec.targets.cuda.kernels.attention_operands import AttentionLaunch
from moec.targets.cuda.kernels.attention_tiled import ATTENTION_TILED
from moec.targets.cuda.launch_ways import Way, call_ways
from moec.targets.tvm.heavy import LoweringContext
from moec.targets.tvm.held_states import HeldTensor
from moec.targets.tvm.kernel import select
from moec.targets.tvm.lower.attention import AttentionInputs, AttentionProblem

KERNELS = (ATTENTION_FEW, ATTENTION_MMA, ATTENTION_TILED)


def attend(
    architecture: str,
    lowering: LoweringContext,
    node: ir.Node,
    inputs: AttentionInputs,
    problem: AttentionProblem,
    output: relax.TensorType,
) -> relax.Expr:
    """The result, by the kernel that is best for the number of queries."""
    numbers = (SizeRange(most=FEW_QUERIES), SizeRange(least=FEW_QUERIES + 1))
    ways = [_way(AttentionLaunch(problem, str(output.dtype), queries), architecture) for queries in numbers]
    return call_ways(lowering, node, ways, 2, _operands(lowering, inputs), output)


def _way(launch: AttentionLaunch, architecture: str) -> Way:
    chosen = select(KERNELS, launch, architecture)
    attributes: dict[str, object] = {**dataclasses.asdict(launch.problem), "queries": str(launch.queries)}
    function = chosen.kernel.build(launch.problem, launch.dtype)
    return Way(chosen, function, launch.queries, attributes | chosen.tile_of(launch.problem))


def _operands(lowering: LoweringContext, inputs: AttentionInputs) -> list[relax.Expr]:
    """With tensors that are not read in the place of mask and lengths that are not there."""
    mask, lengths = inputs.mask, inputs.lengths
    if mask is None:
        mask = lowering.add_weight("no_mask", (1, 1, 1, 1), "bool", lambda: np.zeros((1, 1, 1, 1), bool))
    if lengths is None:
        lengths = lowering.add_weight("no_lengths", (1,), "int64", lambda: np.zeros(1, np.int64))
    keys = [tensor.pages if isinstance(tensor, HeldTensor) else tensor for tensor in (inputs.key, inputs.value)]
    return [inputs.query, *keys, mask, lengths]
