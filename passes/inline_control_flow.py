"""Loops that end and branches, without loops and branches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import onnx_ir as ir

from moec.common.names import node_name
from moec.ir.dialect import REFUSAL_KEY
from moec.ir.graphs import lift_constants
from moec.passes.control_flow import branches, loops
from moec.passes.control_flow.bodies import Inliner
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import is_op, replace_node, value_names
from moec.passes.graph.writer import NotDecomposableError
from moec.passes.shapes.symbolic import Names

_INLINED: dict[str, Callable[[Inliner], list[ir.Value]]] = {
    "If": branches.inline_branch,
    "Loop": loops.unroll_loop,
    "Scan": loops.unroll_scan,
}


@dataclasses.dataclass(frozen=True)
class InlineControlFlow:
    """Replaces If, Loop and Scan by their bodies; those inside bodies follow.

    Conditions and trip counts that follow from constants and sizes are computed first (:class:`FoldConstants`,
    :class:`FoldShapes`).

    1. An If whose condition is known becomes the branch that is taken.
    2. Any other If becomes both branches and a selection of each result, if results have equal shapes. Requirements of
       both branches on their inputs then always hold. A Loop without scan outputs that is not unrolled takes no step in
       a branch that is not chosen, where it might not end.
    3. A Loop whose trip count is known, or whose condition becomes false in a step known now, becomes its steps. So
       does one whose condition is known only when the model runs, within its trip count, if it has no scan outputs: a
       step after the last one passes its states on unchanged.
    4. A Scan over axes of a known size becomes its steps.
    5. A node whose bodies would become more than ``limit`` nodes, and any other, stays, and is reported.

    ::

        (float[T] x) => (float[T] y) <int64 two = {2}, bool yes = {1}> {
           y = Loop <body = step (int64 i, bool going, float[T] v) => (bool again, float[T] w) {
              again = Identity (going)
              w = Add (v, x)
           }> (two, yes, x)
        }
            inline-control-flow,simplify,remove-dead-nodes ->
        (float[T] x) => (float[T] y) {
           "y.w" = Add (x, x)
           y = Add ("y.w", x)
        }

    and::

        (float[T] x, bool flag) => (float[T] y) {
           y = If <
              then_branch = yes () => (float[T] a) { a = Relu (x) },
              else_branch = no () => (float[T] b) { b = Neg (x) }
           > (flag)
        }
            ->
        (float[T] x, bool flag) => (float[T] y) <int64[0] "y.no_axes" = {}> {
           "y.a" = Relu (x)
           "y.b" = Neg (x)
           "y.condition" = Reshape (flag, "y.no_axes")
           y = Where ("y.condition", "y.a", "y.b")
        }
    """

    name: ClassVar[str] = "inline-control-flow"
    exactness: ClassVar[Exactness] = "exact"

    limit: int = 10_000

    def apply(self, model: ir.Model, report: Report) -> bool:
        from moec.passes.fold_constants import FoldConstants
        from moec.passes.fold_shapes import FoldShapes

        refused: dict[ir.Node, str] = {}
        changed = False
        while pending := [node for node in model.graph if is_op(node, *_INLINED) and node not in refused]:
            lift_constants(model)
            FoldConstants().apply(model, report)
            FoldShapes().apply(model, report)
            taken, names = value_names(model.graph), Names(model.graph)
            for node in pending:
                reason = self._inline(Inliner(node, taken, names, self.limit), report)
                if reason is not None:
                    refused[node] = reason
            changed = True
        for node, reason in refused.items():
            if node.metadata_props.get(REFUSAL_KEY) != reason:  # another run of this pass has said it
                report.warn(self.name, node_name(node), f"{node.op_type} stays as it is: {reason}")
            node.metadata_props[REFUSAL_KEY] = reason
        return changed

    def _inline(self, write: Inliner, report: Report) -> str | None:
        """Replace the node by its bodies; return the reason if that is not possible."""
        node = write.node
        try:
            values = _INLINED[node.op_type](write)
        except NotDecomposableError as reason:
            write.undo()
            return str(reason)
        for remark in write.remarks:
            report.note(self.name, node_name(node), f"{node.op_type}: {remark}")
        replace_node(node, values)
        return None
