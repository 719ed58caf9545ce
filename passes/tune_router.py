"""Routers of layers whose experts were removed, merged or rounded choose and weigh anew."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import ClassVar

import onnx_ir as ir

from moec.common.names import node_name
from moec.ir import dialect
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.router_product import other_user_of_logits
from moec.passes.weights.router_fit import RouterFit, import_torch, why_not
from moec.passes.weights.sampled_layer import SampledLayer, sampled_layer
from moec.profiles import Profile

_FEWEST = 32
"""Tokens without which nothing is tuned: a quarter of them is held out."""


@dataclasses.dataclass(frozen=True)
class TuneRouter:
    """Tunes routers of ``moec.MoE``, and of ``moec.Route`` with ``moec.Experts``, to restore their layers' outputs.

    1. ``profile``, a file that ``moec profile`` makes, holds some tokens of every layer and the layer's outputs before
       passes changed it. From the present router on, the matrix (and bias) of its logits takes steps that bring the
       output on three quarters of these tokens nearer to the measured one (:mod:`moec.passes.weights.router_fit`).
       Needs PyTorch (``pip install "moec[torch]"``). Nothing is random.
    2. The other tokens are held out: a step is taken only if the error on them becomes smaller, too. If all steps
       together reduce it by less than two standard errors, the router stays as it was.
    3. Routers stay as they are, with a warning, where logits are not a product of the layer's tokens with a constant
       matrix, or have other users; with a capacity, where experts choose tokens or see their input times the weight,
       with ``score=sparsemixer``, and with fewer than 32 tokens. Tokens of which a number is not finite are left out.
    4. The report says the error on the tokens held out before and after.

    ::

        (float[T,8] x) => (float[T,8] y) <float[8,4] matrix, float[4] bias, float[4,6,8] up, float[4,8,6] down> {
           logits = Gemm (x, matrix, bias)
           y = moec.MoE <activation = "relu", gate_layout = "none", k = 2, score = "softmax_topk">
                        (x, logits, , up, down)
        }
            infer-shapes,prune-experts{keep=3,method=random,seed=1},tune-router{profile=PROFILE} ->
        (float[T,8] x) => (float[T,8] y)
           <float[8,3] matrix_used_tuned, float[3] bias_used_tuned, float[3,6,8] up_used, float[3,8,6] down_used> {
           logits = Gemm (x, matrix_used_tuned, bias_used_tuned)
           y = moec.MoE <activation = "relu", gate_layout = "none", k = 2, score = "softmax_topk">
                        (x, logits, "", up_used, down_used)
        }
    """

    name: ClassVar[str] = "tune-router"
    exactness: ClassVar[Exactness] = "lossy"

    profile: str

    def apply(self, model: ir.Model, report: Report) -> bool:
        nodes = [node for node in model.graph if dialect.has_experts(node)]
        if not nodes:
            report.warn(self.name, "model", "nothing to tune: no MoE block was raised before this pass")
            return False
        import_torch()
        with contextlib.closing(Profile.read(self.profile)) as profile:
            return any([self._tune(model.graph, node, profile, report) for node in nodes])

    def _tune(self, graph: ir.Graph, node: ir.Node, profile: Profile, report: Report) -> bool:
        sampled = sampled_layer(self.name, node, profile, report)
        if sampled is None:
            return False
        if (reason := _why_not(sampled)) is not None:
            report.warn(self.name, node_name(node), f"stays as it is: {reason}")
            return False
        fit = RouterFit(sampled)
        before, router = fit.error(fit.present), fit.fitted()
        start = f"on {len(fit.held_out.inputs)} tokens held out its output is"
        if router is fit.present:
            report.note(self.name, node_name(node), f"{start} {before:.2%} from what it was; no other is surely better")
            return False
        sampled.router.replace(graph, router.weight, router.bias)
        after = fit.error(router)
        report.note(self.name, node_name(node), f"{start} {after:.2%} from what it was, instead of {before:.2%}")
        return True


def _why_not(sampled: SampledLayer) -> str | None:
    """Why a layer keeps its router."""
    user = other_user_of_logits(sampled.experts.logits, sampled.router)
    if user is not None:
        return user
    if len(sampled.inputs) < _FEWEST:
        return f"the profile holds {len(sampled.inputs)} tokens of it that are finite; {_FEWEST} are needed"
    return why_not(sampled)
