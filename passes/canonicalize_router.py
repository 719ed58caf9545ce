"""One spelling for routers that compute the same."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from moec.ir import dialect
from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.passes.base import Exactness, Report
from moec.passes.rewriting import constant


@dataclasses.dataclass(frozen=True)
class CanonicalizeRouter:
    """Rewrites the attributes of ``moec.Route`` and ``moec.MoE`` to the form with the least work.

    1. A ``correction_bias`` of zeros moves no choice: it is dropped.
    2. renormalise(topk(softmax(x))) = softmax(topk(x)): softmax keeps order, and the sum over all experts cancels. Only
       without bias, groups, threshold, capacity and normalize_epsilon, which see the scores themselves.
    3. softmax_topk weights sum to 1 already: ``normalize`` with epsilon 0 is dropped, under the same conditions.
    4. Groups of which all are kept restrict nothing: they are dropped.

    ::

        w, e = moec.Route <k = 2, normalize = 1> (logits)
            ->
        w, e = moec.Route <k = 2, score = "softmax_topk"> (logits)
    """

    name: ClassVar[str] = "canonicalize-router"
    exactness: ClassVar[Exactness] = "reassociating"

    def apply(self, model: ir.Model, report: Report) -> bool:
        changed = False
        for node in model.graph:
            if dialect.is_moec(node, "Route") or dialect.is_moec(node, "MoE"):
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


def _rewrite_spec(node: ir.Node) -> bool:
    spec = dialect.spec_of(node, RouteSpec)
    canonical = _canonical(spec, biased=dialect.inputs_of(node)["correction_bias"] is not None)
    if canonical == spec:
        return False
    others = [dialect.spec_of(node, ExpertsSpec)] if node.op_type == "MoE" else []
    for field in dataclasses.fields(RouteSpec):
        node.attributes.pop(field.name, None)
    for name, value in dialect.attributes_of(canonical, *others).items():
        node.attributes[name] = ir.convenience.convert_attribute(name, value)
    return True


def _canonical(spec: RouteSpec, *, biased: bool) -> RouteSpec:
    if spec.groups > 1 and spec.groups_kept == spec.groups:
        spec = dataclasses.replace(spec, groups=1, groups_kept=1)
    only_selected = (
        not biased
        and spec.selection == "topk"
        and spec.groups == 1
        and spec.threshold is None
        and spec.capacity == 0
        and spec.normalize_epsilon == 0.0
    )
    if only_selected and spec.normalize and spec.score in ("softmax", "softmax_topk"):
        spec = dataclasses.replace(spec, score="softmax_topk", normalize=False)
    return spec
