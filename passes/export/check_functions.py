"""Calls of functions of domain moec, whose bodies a file brings along."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from moec.common.names import node_name, operator_name
from moec.ir import local_bodies
from moec.ir.dialect import DOMAIN, FORMULATION_KEY
from moec.ir.graphs import lift_constants
from moec.passes.export.function_bodies import Signature, expert_count, function_of, has_function, same_body, signature
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.writer import NotDecomposableError

_REFUSED = "refused"
_MOST_EXPERTS = 1 << 16
"""Experts of a node beyond which a file that says so is not believed."""


@dataclasses.dataclass(frozen=True)
class CheckFunctions:
    """Takes a call of a function of domain moec for the operator of that name only where the function computes it.

    1. A body that is the one that call-functions writes for the node's attributes and types is left away.
    2. Numbers of attributes are the shortest ones that float32, in which ONNX has them, cannot tell from what is read.
    3. Any other body takes the place of the call, because a function computes what its body says, whatever its name
       and attributes are. A warning says so.

    ::

        (float[T,8] logits) => (float[T,2] w, int32[T,2] e) {
           w, e = moec.Route <k = 2> (logits)
        }
            ->
        (float[T,8] logits) => (float[T,2] w, int32[T,2] e) {
           w, e = moec.Route <k = 2> (logits)
        }
    """

    name: ClassVar[str] = "check-functions"
    exactness: ClassVar[Exactness] = "exact"

    def apply(self, model: ir.Model, report: Report) -> bool:
        bodies, expected = local_bodies.of(model), dict[Signature, ir.Function | None]()
        calls = [node for node in model.graph.all_nodes() if node.domain == DOMAIN and node.op_identifier() in bodies]
        refused: dict[str, ir.Function] = {}
        for node in calls:
            _shorten(node)
            key, body = signature(node), bodies[node.op_identifier()]
            if key not in expected:
                expected[key] = _expected(node)
            own = expected[key]
            if own is not None and same_body(body, own):
                node.overload = ""
                node.metadata_props[FORMULATION_KEY] = operator_name(node)
                continue
            report.warn(
                self.name, node_name(node),
                f"{operator_name(node)} becomes the nodes of its function in the file, which are not those that moec "
                "writes for its attributes",
            )  # fmt: skip
            refused[body.name + body.overload] = body
            node.overload = _REFUSED + node.overload
        if refused:
            _inline(model, refused.values())
        return bool(calls)


def _shorten(node: ir.Node) -> None:
    """Write 1.7 for 1.7000000476837158, which is how the number 1.7 is read."""
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.FLOAT:
            node.attributes[name] = ir.AttrFloat32(name, float(str(np.float32(attribute.as_float()))))


def _expected(node: ir.Node) -> ir.Function | None:
    """The function that call-functions writes; None where it writes none. A body holds a number for each expert."""
    if not has_function(node) or expert_count(node) > _MOST_EXPERTS:
        return None
    try:
        return function_of(node)
    except NotDecomposableError:
        return None


def _inline(model: ir.Model, bodies: Iterable[ir.Function]) -> None:
    """Put bodies in the place of the calls that are marked."""
    from onnx_ir.passes.common import InlinePass

    from moec.ir import shapes

    for body in bodies:
        marked = body.clone()
        marked.overload = _REFUSED + body.overload
        model.functions[marked.identifier()] = marked
    InlinePass(criteria=lambda function: function.overload.startswith(_REFUSED))(model)
    model.functions.clear()
    lift_constants(model)
    shapes.infer(model)
