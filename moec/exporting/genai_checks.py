"""Checks of what onnxruntime-genai gives a language model: nodes that fail, named for the reason, which onnxruntime
shows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moec.frontend.pytorch.text_cache import SIZES as CACHE_SIZES
from moec.frontend.pytorch.text_inputs import SIZES
from moec.ir.graphs import add_constant
from moec.passes.graph.edits import FreshNames

MASK = "attention_mask"
_INT = ir.DataType.INT64
_ONE_LENGTH = "prompts of a batch need one length, because this model takes no padding"
_ANEW = "a text that grows beyond {} tokens has to be given anew, because keys of more tokens rotate otherwise"


def add_mask_and_checks(graph: ir.Graph, ids: ir.Value, switches_after: int | None) -> None:
    """Add the input ``attention_mask`` [batch, past + length], and let the graph fail where a prompt is padded, or
    where a text grows from ``switches_after`` tokens or fewer to more: its cache holds keys of other frequencies."""
    shape = ir.Shape([SIZES[0], f"{CACHE_SIZES[2]} + {SIZES[1]}"])
    mask = ir.Value(name=MASK, type=ir.TensorType(_INT), shape=shape)
    graph.inputs.append(mask)
    checks = _Checks(graph, ids)
    least = checks.op("ReduceMin", mask, keepdims=0)
    checks.fail_if(checks.op("Less", least, checks.constant(1)), _ONE_LENGTH)
    if switches_after is not None:
        total, length = (checks.op("Size", checks.op("Gather", value, checks.constant(0))) for value in (mask, ids))
        past, limit = checks.op("Sub", total, length), checks.constant(switches_after)
        grows = checks.op("And", checks.op("LessOrEqual", past, limit), checks.op("Greater", total, limit))
        begun = checks.op("Greater", past, checks.constant(0))
        checks.fail_if(checks.op("And", begun, grows), _ANEW.format(switches_after))
    checks.finish()


class _Checks:
    """Nodes at the start of a graph, between the ids and their uses."""

    def __init__(self, graph: ir.Graph, ids: ir.Value) -> None:
        self._graph, self._ids, self._uses, self._first = graph, ids, list(ids.uses()), graph[0]
        self._names = FreshNames(graph)
        self._checked = ids

    def constant(self, number: int | list[int]) -> ir.Value:
        return add_constant(self._graph, ir.tensor(np.array(number, np.int64)), self._names.new("number"))

    def op(self, operator: str, *inputs: ir.Value, name: str | None = None, **attributes: int) -> ir.Value:
        label = self._names.new("check")
        node = ir.node(operator, inputs, attributes=attributes, name=name or label)
        node.outputs[0].name = label
        self._graph.insert_before(self._first, node)
        return node.outputs[0]

    def fail_if(self, flag: ir.Value, reason: str) -> None:
        """Add element ``flag`` of the list [0] to the ids: there is none where the flag is true."""
        zero = self.op("Gather", self.constant([0]), self.op("Cast", flag, to=_INT.value), name=reason)
        self._checked = self.op("Add", self._checked, zero)
        self._checked.type, self._checked.shape = self._ids.type, self._ids.shape

    def finish(self) -> None:
        for node, position in self._uses:
            node.replace_input_with(position, self._checked)
