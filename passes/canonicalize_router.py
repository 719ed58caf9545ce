"""One spelling for routers that compute the same."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from moec.ir import dialect
from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import constant, is_op


@dataclasses.dataclass(frozen=True)
class CanonicalizeRouter:
    """Rewrites the attributes of ``moec.Route`` and ``moec.MoE`` to the form with the least work.

    1. A ``correction_bias`` of zeros changes no selection: it is dropped.
    2. renormalise(topk(softmax(x))) = softmax(topk(x)): softmax keeps order, and the sum over all experts cancels. Only
       without bias, groups, thresholds, capacity and guards of the sum, which see the scores themselves.
    3. softmax_topk weights sum to 1 already: ``normalize`` with epsilon 0 is dropped, under the same conditions.
    4. Groups that are all kept restrict nothing: they are dropped.
    5. A Softmax or Sigmoid before a router without a score of its own becomes the router's score.
    6. The k largest of E softmax scores sum to k/E or more: a ``normalize_floor`` below that, without bias,
       groups and thresholds, is dropped.

    By rule 2::

        (float[T,8] logits) => (float[T,2] w, int32[T,2] e) {
           w, e = moec.Route <k = 2, normalize = 1> (logits)
        }
            ->
        (float[T,8] logits) => (float[T,2] w, int32[T,2] e) {
           w, e = moec.Route <k = 2, score = "softmax_topk"> (logits)
        }

    and, by rule 5::

        (float[T,8] logits) => (float[T,2] w, int32[T,2] e) {
           s = Softmax <axis = -1> (logits)
           w, e = moec.Route <k = 2, score = "identity"> (s)
        }
            infer-shapes,canonicalize-router,remove-dead-nodes ->
        (float[T,8] logits) => (float[T,2] w, int32[T,2] e) {
           w, e = moec.Route <k = 2, score = "softmax"> (logits)
        }
    """

    name: ClassVar[str] = "canonicalize-router"
    exactness: ClassVar[Exactness] = "reassociating"

    def apply(self, model: ir.Model, report: Report) -> bool:
        changed = False
        for node in model.graph:
            if dialect.is_moec(node, "Route") or dialect.is_moec(node, "MoE"):
                changed |= _absorb_scores(model.graph, node)
                changed |= _drop_zero_bias(node)
                changed |= _rewrite_spec(node)
        return changed


def _drop_zero_bias(node: ir.Node) -> bool:
    position = dialect.INPUTS[node.op_type].index("correction_bias")
    bias = constant(dialect.inputs_of(node)["correction_bias"], limit=65536)
    if bias is None or np.any(bias != 0):
        return False
    node.replace_input_with(position, None)
    if position == len(node.inputs) - 1:
        node.resize_inputs(position)
    return True


_SCORES = {"Softmax": "softmax", "Sigmoid": "sigmoid"}


def _absorb_scores(graph: ir.Graph, node: ir.Node) -> bool:
    """Rule 5. A Reshape that keeps the experts together may stand between."""
    position = dialect.INPUTS[node.op_type].index("logits")
    router_logits = node.inputs[position]
    reshape = (
        router_logits.producer() if router_logits is not None and is_op(router_logits.producer(), "Reshape") else None
    )
    scores = reshape.inputs[0] if reshape is not None else router_logits
    made_by = scores.producer() if scores is not None else None
    if made_by is None or made_by.domain or made_by.op_type not in _SCORES or scores is None or router_logits is None:
        return False
    E = _last(router_logits)
    if dialect.spec_of(node, RouteSpec).score != "identity" or E is None or _last(scores) != E:
        return False
    rank = len(scores.shape or ())
    if made_by.op_type == "Softmax" and made_by.attributes.get_int("axis", -1) not in (-1, rank - 1):
        return False
    logits = made_by.inputs[0]
    if reshape is not None:
        moved = ir.node("Reshape", [logits, *reshape.inputs[1:]], dict(reshape.attributes))
        moved.outputs[0].shape, moved.outputs[0].type = router_logits.shape, router_logits.type
        graph.insert_before(node, moved)
        logits = moved.outputs[0]
    node.replace_input_with(position, logits)
    node.attributes["score"] = ir.AttrString("score", _SCORES[made_by.op_type])
    return True


def _last(value: ir.Value) -> int | None:
    last = value.shape[-1] if value.shape else None
    return last if isinstance(last, int) else None


def _rewrite_spec(node: ir.Node) -> bool:
    spec = dialect.spec_of(node, RouteSpec)
    inputs = dialect.inputs_of(node)
    E = None if inputs["logits"] is None else _last(inputs["logits"])
    canonical = _canonical(spec, E, biased=inputs["correction_bias"] is not None)
    if canonical == spec:
        return False
    others = [dialect.spec_of(node, ExpertsSpec)] if node.op_type == "MoE" else []
    for field in dataclasses.fields(RouteSpec):
        node.attributes.pop(field.name, None)
    for name, value in dialect.attributes_of(canonical, *others).items():
        node.attributes[name] = ir.convenience.convert_attribute(name, value)
    return True


def _canonical(spec: RouteSpec, E: int | None, *, biased: bool) -> RouteSpec:
    if spec.groups > 1 and spec.groups_kept == spec.groups:
        spec = dataclasses.replace(spec, groups=1, groups_kept=1)
    thresholds = spec.threshold is not None or spec.relative_threshold > 0
    largest = not biased and spec.selection == "topk" and spec.groups == 1 and not thresholds
    if largest and spec.score == "softmax" and E is not None and spec.normalize_floor < spec.k / E:
        spec = dataclasses.replace(spec, normalize_floor=0.0)
    only_selected = largest and spec.capacity == 0 and spec.normalize_epsilon == 0.0 and spec.normalize_floor == 0.0
    if only_selected and spec.normalize and spec.score in ("softmax", "softmax_topk"):
        spec = dataclasses.replace(spec, score="softmax_topk", normalize=False)
    return spec
