"""Experts that were removed, merged or rounded are made up for: the others contribute more, or less."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from moec.common.names import node_name
from moec.ir import dialect
from moec.ir.graphs import add_constant
from moec.ir.weight_operands import weight_inputs
from moec.ir.weights.stored import StoredWeight, constant
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import fresh_name, remove_unused
from moec.passes.weights.sampled_layer import SampledLayer, sampled_layer
from moec.passes.weights.store import scale_experts
from moec.profiles import Profile
from moec.profiles.keys import keep_key

Array = np.ndarray[Any, Any]
_RIDGE = 2.0
"""Number of pairs of mean size, with a factor of 1, that are added to each expert's pairs in the sample."""
_DECIMALS = 6
"""Decimals of factors: their last bits differ from processor to processor."""
_SMALL = 1e-3
"""Changes of factors that are not worth other weights."""
_EXPONENTS = ir.DataType.FLOAT8E8M0


@dataclasses.dataclass(frozen=True)
class RescaleExperts:
    """Multiplies the output of each expert of ``moec.MoE``, and of ``moec.Route`` with ``moec.Experts``, by a factor.

    1. ``profile``, a file that ``moec profile`` makes, holds some tokens of every layer and what the layer made of them
       before passes changed it. These tokens are routed as they are now, and over all experts of the layer at once
       those factors are taken with which its output is nearest to what it was (least squares). They are drawn to 1 as
       if each expert had seen 2 further pairs of the mean size that were right as they are, so that an expert which
       few tokens of the sample go to stays nearly as it is, and one which none goes to stays.
    2. The factor goes into down: into numbers that are floats, into the scales of others, each rounded to its type; and
       into the bias of down. This pass comes last of those that change experts.
    3. Layers stay as they are, with a warning, where tokens alone do not say which experts they go to: with a capacity,
       where experts choose tokens, where logits are not a product of the layer's tokens with a constant matrix, or
       routing has other users; and where a factor cannot be had: with an ``output_limit``, or down in mxfp4, whose
       scales are powers of two. Tokens of which a number is not finite are left out.
    4. The report gives the distance of the output from the measured one, on these tokens, before and after.

    ::

        (float[T,8] x) => (float[T,8] y) <float[8,4] matrix, float[4,6,8] up, float[4,8,6] down, float[4,8] bias> {
           logits = MatMul (x, matrix)
           y = moec.MoE <activation = "relu", gate_layout = "none", k = 2> (x, logits, , up, down, , , bias)
        }
            infer-shapes,prune-experts{keep=3,profile=PROFILE},rescale-experts{profile=PROFILE} ->
        (float[T,8] x) => (float[T,8] y)
           <float[8,3] matrix_used, float[3,6,8] up_used, float[3,8,6] down_used_float32,
            float[3,8] bias_used_scaled> {
           logits = MatMul (x, matrix_used)
           y = moec.MoE <activation = "relu", gate_layout = "none", k = 2>
                        (x, logits, "", up_used, down_used_float32, "", "", bias_used_scaled)
        }
    """

    name: ClassVar[str] = "rescale-experts"
    exactness: ClassVar[Exactness] = "lossy"

    profile: str

    def apply(self, model: ir.Model, report: Report) -> bool:
        nodes = [node for node in model.graph if dialect.has_experts(node)]
        if not nodes:
            report.warn(self.name, "model", "nothing to rescale: no MoE block was raised before this pass")
        with contextlib.closing(Profile.read(self.profile)) as profile:
            return any([self._rescale(model.graph, node, profile, report) for node in nodes])

    def _rescale(self, graph: ir.Graph, node: ir.Node, profile: Profile, report: Report) -> bool:
        sampled = sampled_layer(self.name, node, profile, report)
        if sampled is None:
            return False
        if (reason := _unscalable(node)) is not None:
            report.warn(self.name, node_name(node), f"stays as it is: {reason}")
            return False
        system = _System(sampled)
        factors = np.round(system.solution(_RIDGE), _DECIMALS)
        if np.abs(factors - 1).max() < _SMALL:
            report.note(
                self.name, node_name(node), f"nothing to rescale: {system.tokens} tokens need no factors other than 1"
            )
            return False
        keep_key(node)
        scale_experts(node, "down", list(factors))
        _scale_bias(graph, node, factors)
        report.note(
            self.name,
            node_name(node),
            f"on {system.tokens} tokens its output is {system.error(factors):.2%} from what it was, instead of "
            f"{system.error(np.ones_like(factors)):.2%}; factors are {factors.min():.3f} to {factors.max():.3f}",
        )
        return True


class _System:
    """The normal equations of the factors [E]: of |y - sum of factor times contribution|^2 over tokens."""

    def __init__(self, sampled: SampledLayer) -> None:
        count = sampled.experts.stored
        weights, ids = sampled.routed()
        pairs = sampled.contributions(weights, ids)
        finite = np.isfinite(pairs).all(axis=(1, 2))
        pairs, ids = pairs[finite], ids[finite]
        fixed = ids >= count
        target = sampled.outputs[finite] - np.where(fixed[..., None], pairs, 0).sum(axis=1)
        ids = np.where(fixed | (ids < 0), count, ids)
        products = np.einsum("tiw,tjw->tij", pairs, pairs, optimize=False)
        self.tokens, self._pairs = len(ids), int((ids < count).sum())
        square, right = np.zeros((count + 1, count + 1)), np.zeros(count + 1)
        np.add.at(square, (ids[:, :, None], ids[:, None, :]), products)
        np.add.at(right, ids, np.einsum("tiw,tw->ti", pairs, target, optimize=False))
        self._square, self._right = square[:count, :count], right[:count]
        self._wanted, self._size = float(np.square(target).sum()), float(np.square(sampled.outputs[finite]).sum())

    def solution(self, ridge: float) -> Array:
        """The factors [E]; 1 where the tokens say nothing."""
        energy = float(np.trace(self._square))
        if energy == 0:
            return np.ones(len(self._right))
        pull = ridge * energy / self._pairs
        return np.linalg.solve(self._square + pull * np.eye(len(self._right)), self._right + pull)

    def error(self, factors: Array) -> float:
        """The norm of the output's error, relative to the measured output."""
        left = self._wanted - 2 * factors @ self._right + factors @ self._square @ factors
        return float(np.sqrt(max(left, 0) / self._size)) if self._size else 0.0


def _unscalable(node: ir.Node) -> str | None:
    """The reason why experts' results cannot be multiplied by factors; None if they can."""
    limit = dialect.spec_of(node, dialect.ExpertsSpec).output_limit
    if limit > 0:
        return f"what its experts return is limited to {limit:g}"
    runs = StoredWeight.of(weight_inputs(node)["down"]).runs
    exponents = next((run for run in runs if run.scale is not None and run.scale.dtype == _EXPONENTS), None)
    return None if exponents is None else f"down is {exponents.format}, whose scales are powers of two"


def _scale_bias(graph: ir.Graph, node: ir.Node, factors: Array) -> None:
    value = dialect.inputs_of(node)["down_bias"]
    tensor = constant(value)
    if value is None or tensor is None:
        return
    scaled = (tensor.numpy().astype(np.float64) * factors[:, None]).astype(tensor.dtype.numpy())
    new = add_constant(graph, ir.Tensor(scaled, dtype=tensor.dtype), fresh_name(graph, f"{value.name}_scaled"))
    node.replace_input_with(dialect.INPUTS[node.op_type].index("down_bias"), new)
    remove_unused(graph, value)
