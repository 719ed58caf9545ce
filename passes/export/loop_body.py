"""The body of a loop over experts: a step computes one expert and updates the results so far."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from moec.passes.graph.writer import Writer

Update = Callable[[Writer, ir.Value, ir.Value], ir.Value]
"""Function that writes a step. Arguments: the writer of the body, the number of the expert, the results so far. Returns
the results after the step."""


def loop_body(outer: Writer, used: ir.Value, results: ir.TypeProtocol, update: Update) -> ir.Graph:
    """Write the body of a Loop over the experts ``used`` [m]: step, condition and results so far, of the type
    ``results``, to condition and results."""
    number = ir.Value(name=outer.name("step"), type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    going = ir.Value(name=outer.name("going"), type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    before = ir.Value(name=outer.name("before"), type=results)
    last = ir.node("Identity", [going])
    last.outputs[0].name = outer.name("goes_on")
    last.outputs[0].type, last.outputs[0].shape = going.type, going.shape
    graph = ir.Graph([number, going, before], [last.outputs[0]], nodes=[last], name="one_expert")
    write = Writer(last, outer.taken)
    after = update(write, write.add("Gather", used, number, axis=0, label="expert"), before)
    after.type = results
    graph.outputs.append(after)
    return graph
