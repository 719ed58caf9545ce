"""Inlining of If: the branch of a known condition, or both branches with a selection."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from moec.ir.graphs import carried_inputs, is_op, nested_graphs
from moec.passes.control_flow.bodies import Inliner


def inline_branch(write: Inliner) -> list[ir.Value]:
    """Inline the branch that is taken, or both with a selection of each result if the condition is not known.

    Raises NotDecomposableError if results of the two may differ in shape.
    """
    condition = write.required(0, "cond")
    taken = write.element(condition)
    if taken is not None:
        return write.inline(write.body("then_branch" if taken else "else_branch"), [])
    names = ("then_branch", "else_branch")
    chosen = _conditions(write, condition) if any(_endless(write, write.body(name)) for name in names) else {}
    results: list[list[ir.Value]] = []
    for name in names:
        start = len(write.inserted)
        results.append(write.inline(write.body(name), []))
        for loop in _endless(write, write.inserted[start:]):
            _run_only_if(write, loop, chosen[name])
    write.remarks.append("its condition is known only when the model runs: both branches are computed, and one chosen")
    return [
        write.choose(condition, first, second, str(output.name or "output"))
        for output, first, second in zip(write.node.outputs, *results, strict=True)
    ]


def _conditions(write: Inliner, condition: ir.Value) -> dict[str, ir.Value]:
    """Whether each branch is taken, without axes."""
    scalar = write.scalar(condition)
    return {"then_branch": scalar, "else_branch": write.move("Not", scalar)}


def _endless(write: Inliner, nodes: Iterable[ir.Node]) -> list[ir.Node]:
    """The outermost Loops that may run for long, or for ever, in a branch that is not taken.

    Those with scan outputs are not among them: their outputs would have another size without a step."""
    loops: list[ir.Node] = []
    for node in nodes:
        has_slices = len(node.outputs) != len(carried_inputs(node))
        if is_op(node, "Loop") and not has_slices and write.element(node.inputs[0]) is None:
            loops.append(node)
        else:
            loops += (loop for body in nested_graphs(node) for loop in _endless(write, body))
    return loops


def _run_only_if(write: Inliner, loop: ir.Node, condition: ir.Value) -> None:
    """Let a Loop take no step if the condition is false."""
    going = loop.inputs[1]
    if going is None:
        loop.replace_input_with(1, condition)
        return
    both = ir.node("And", [going, condition])
    both.outputs[0].name, both.outputs[0].type = write.name("going"), ir.TensorType(ir.DataType.BOOL)
    assert loop.graph is not None
    loop.graph.insert_before(loop, both)
    if loop.graph is write.graph:
        write.inserted.append(both)
    loop.replace_input_with(1, both.outputs[0])
