"""Inlining of If: the branch of a known condition, or both branches with a selection."""

from __future__ import annotations

import onnx_ir as ir

from moec.passes.control_flow.bodies import Inliner


def inline_branch(write: Inliner) -> list[ir.Value]:
    """Inline the branch that is taken, or both with a selection of each result if the condition is not known.

    Raises NotDecomposableError if results of the two may differ in shape.
    """
    condition = write.required(0, "cond")
    taken = write.element(condition)
    if taken is not None:
        return write.inline(write.body("then_branch" if taken else "else_branch"), [])
    yes, no = (write.inline(write.body(name), []) for name in ("then_branch", "else_branch"))
    write.remarks.append("its condition is known only when the model runs: both branches are computed, and one chosen")
    return [
        write.choose(condition, first, second, str(output.name or "output"))
        for output, first, second in zip(write.node.outputs, yes, no, strict=True)
    ]
