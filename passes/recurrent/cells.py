"""One step of RNN, GRU and LSTM, from the projected input and the state.

Equations and the order of gates: https://onnx.ai/onnx/operators/onnx__GRU.html, onnx__LSTM.html, onnx__RNN.html.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from moec.passes.graph.writer import Writer
from moec.passes.recurrent.activations import Activation

PEEPHOLES = 7


@dataclasses.dataclass(frozen=True)
class Cell:
    """One direction: ``recurrence`` [hidden,gates*hidden] (R, transposed), its ``bias`` [gates*hidden] if a gate scales
    it (otherwise it is part of the projected input), ``peepholes`` [3*hidden], activations."""

    hidden: int
    kind: ir.DataType
    recurrence: ir.Value
    bias: ir.Value | None
    peepholes: ir.Value | None
    activations: list[Activation]


def split(write: Writer, x: ir.Value, parts: list[int], axis: int = -1) -> list[ir.Value]:
    """Split ``x`` along an axis into parts of these sizes."""
    node = ir.node("Split", [x, write.numbers(*parts)], attributes={"axis": axis}, num_outputs=len(parts))
    write.insert(node, *("part" for _ in parts))
    return list(node.outputs)


def rnn(write: Writer, cell: Cell, x: ir.Value, state: list[ir.Value]) -> list[ir.Value]:
    """Ht = f(Xt + Ht-1 R)."""
    (f,) = cell.activations
    total = write.add("Add", x, write.add("MatMul", state[0], cell.recurrence))
    return [f.of(write, total, cell.kind)]


def gru(write: Writer, cell: Cell, x: ir.Value, state: list[ir.Value]) -> list[ir.Value]:
    """zt, rt = f(...), ht = g(...), Ht = (1 - zt) ht + zt Ht-1; gates in the order z, r, h."""
    (h,), (f, g), size = state, cell.activations, cell.hidden
    x_gates, x_new = split(write, x, [2 * size, size])
    if write.attribute("linear_before_reset", 0):
        recurrent = write.add("MatMul", h, cell.recurrence)
        recurrent = recurrent if cell.bias is None else write.add("Add", recurrent, cell.bias)
        h_gates, h_new = split(write, recurrent, [2 * size, size])
        z, r = split(write, f.of(write, write.add("Add", x_gates, h_gates), cell.kind), [size, size])
        h_new = write.add("Mul", r, h_new)
    else:
        gates, new = split(write, cell.recurrence, [2 * size, size])
        total = write.add("Add", x_gates, write.add("MatMul", h, gates))
        z, r = split(write, f.of(write, total, cell.kind), [size, size])
        h_new = write.add("MatMul", write.add("Mul", r, h), new)
    candidate = g.of(write, write.add("Add", x_new, h_new), cell.kind)
    ones = write.constant(np.array(1, cell.kind.numpy()), "one")
    kept = write.add("Mul", z, h)
    return [write.add("Add", write.add("Mul", write.add("Sub", ones, z), candidate), kept)]


def lstm(write: Writer, cell: Cell, x: ir.Value, state: list[ir.Value]) -> list[ir.Value]:
    """Ct = ft Ct-1 + it ct, Ht = ot h(Ct); gates in the order i, o, f, c, peepholes in the order i, o, f.

    ``clip`` bounds the gates and not the state that enters h, as in onnxruntime; ONNX leaves that open.
    """
    (h, c), (f, g, last), size = state, cell.activations, cell.hidden
    total = write.add("Add", x, write.add("MatMul", h, cell.recurrence))
    i, o, forget, new = split(write, total, [size] * 4)
    peepholes = None if cell.peepholes is None else split(write, cell.peepholes, [size] * 3)
    if peepholes is not None:
        i = write.add("Add", i, write.add("Mul", peepholes[0], c))
        forget = write.add("Add", forget, write.add("Mul", peepholes[2], c))
    i = f.of(write, i, cell.kind)
    if write.attribute("input_forget", 0):
        forget = write.add("Sub", write.constant(np.array(1, cell.kind.numpy()), "one"), i)
    else:
        forget = f.of(write, forget, cell.kind)
    new = write.add("Mul", i, g.of(write, new, cell.kind))
    c = write.add("Add", write.add("Mul", forget, c), new)
    if peepholes is not None:
        o = write.add("Add", o, write.add("Mul", peepholes[1], c))
    return [
        write.add("Mul", f.of(write, o, cell.kind), dataclasses.replace(last, clip=None).of(write, c, cell.kind)),
        c,
    ]
