"""The steps of a router (:class:`~moec.ir.dialect.RouteSpec`) in ONNX operators.

Sizes: T tokens, E experts, k experts per token, G groups.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from moec.ir import dialect
from moec.ir.dialect import RouteSpec
from moec.ir.scores import LOGITS, Function, Primitives, elementwise_scores
from moec.passes.graph.writer import NotDecomposableError, Writer

_WIDE = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


class RouteSpelling:
    """The spelling of one ``moec.Route`` node, in front of that node."""

    def __init__(self, write: Writer, spec: RouteSpec) -> None:
        self._write, self._spec = write, spec
        logits = write.required(0, "logits")
        if logits.shape is None or not isinstance(logits.shape[1], int):
            raise NotDecomposableError(f"the number of experts in {logits.name!r} is not known")
        self._logits, self._experts = logits, int(logits.shape[1])
        self._result = logits.dtype or ir.DataType.FLOAT
        self._dtype = self._result if self._result in _WIDE else ir.DataType.FLOAT

    def results(self) -> list[ir.Value]:
        """Write all steps. Returns weights [T,k] and ids [T,k] in int32."""
        write, spec = self._write, self._spec
        logits = self._typed(self._logits)
        if spec.score == "sparsemixer":
            weights, ids = self._sparse_mixer(logits)
        else:
            weights, ids = self._selected(logits)
        weights, ids = self._without_small(weights, ids)
        if spec.normalize:
            weights = self._normalized(weights)
        if spec.scale != 1:
            weights = write.add("Mul", weights, self._number(spec.scale), label="scaled")
        if spec.capacity > 0 and spec.selection == "topk":
            weights, ids = self._within_capacity(weights, ids)
        if self._result != self._dtype:
            weights = write.add("Cast", weights, to=self._result, label="weights")
        return [weights, write.add("Cast", ids, to=ir.DataType.INT32, label="experts")]

    def _typed(self, value: ir.Value) -> ir.Value:
        return value if value.dtype == self._dtype else self._write.add("Cast", value, to=self._dtype, label="wide")

    def _number(self, number: float) -> ir.Value:
        return self._write.weight(ir.tensor(np.array(number, self._dtype.numpy()), dtype=self._dtype), "number")

    def _integer(self, number: int) -> ir.Value:
        return self._write.constant(np.array(number, np.int64), "number")

    def _scores(self, logits: ir.Value) -> ir.Value:
        write, score = self._write, self._spec.score
        if score == "softmax":
            return write.add("Softmax", logits, axis=-1, label="scores")
        if score in LOGITS:
            return logits
        primitives = Primitives(*(_operator(write, name) for name in ("Sigmoid", "Softplus", "Sqrt", "Relu")))
        return elementwise_scores(primitives)[score](logits)

    def _selected(self, logits: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Steps 1 to 3: the score of every selected expert, and its id."""
        write, spec = self._write, self._spec
        scores = choice = self._scores(logits)
        bias = dialect.inputs_of(write.node)["correction_bias"]
        if bias is not None:
            choice = write.add("Add", scores, self._typed(bias), label="choice")
        if spec.groups > 1:
            choice = self._best_groups(choice)
        if spec.selection == "topk":
            best, ids = self._top(choice, spec.k)
            weights = best if choice is scores else write.add("GatherElements", scores, ids, axis=1, label="selected")
        else:
            weights, ids = scores, self._all(choice)
        if spec.score == "softmax_topk":
            weights = write.add("Softmax", self._where_taken(weights, ids, -math.inf), axis=-1, label="selected")
        elif spec.score == "sigmoid_topk":
            weights = write.add("Sigmoid", weights, label="selected")
        return (weights if spec.selection != "expert_choice" else self._where_taken(weights, ids, 0)), ids

    def _top(self, values: ir.Value, count: int, axis: int = -1) -> tuple[ir.Value, ir.Value]:
        """The largest values and their numbers, ascending among equals."""
        attributes = {} if axis == -1 else {"axis": axis}
        top = ir.node("TopK", [values, self._write.numbers(count)], attributes, num_outputs=2)
        self._write.insert(top, "best", "ids")
        return top.outputs[0], top.outputs[1]

    def _best_groups(self, choice: ir.Value) -> ir.Value:
        """Selection scores with every group but the best set to -inf."""
        write, spec = self._write, self._spec
        size = self._experts // spec.groups
        grouped = write.add("Reshape", choice, write.numbers(0, spec.groups, size), label="grouped")
        if spec.group_score == "max":
            totals = write.add("ReduceMax", grouped, write.numbers(2), keepdims=0, label="group_scores")
        else:
            two, _ = self._top(grouped, min(2, size))
            totals = write.add("ReduceSum", two, write.numbers(2), keepdims=0, label="group_scores")
        _, kept = self._top(totals, spec.groups_kept)
        hidden = write.add("ConstantOfShape", write.add("Shape", totals), value=_one(ir.DataType.BOOL), label="hidden")
        shown = write.add("Cast", write.add("Mul", kept, self._integer(0)), to=ir.DataType.BOOL, label="shown")
        hidden = write.add("ScatterElements", hidden, kept, shown, axis=1, label="hidden")
        hidden = write.add("Unsqueeze", hidden, write.numbers(2), label="hidden")
        left = write.add("Where", hidden, self._number(-math.inf), grouped, label="left")
        return write.add("Reshape", left, write.numbers(0, self._experts), label="choice")

    def _all(self, choice: ir.Value) -> ir.Value:
        """The ids [T,E] of all experts; -1 where, by expert choice, an expert does not take the token."""
        write, spec = self._write, self._spec
        numbers = write.constant(np.arange(self._experts, dtype=np.int64), "numbers")
        shape = write.add("Shape", choice, label="shape")
        if spec.selection == "all":
            return write.add("Expand", numbers, shape, label="ids")
        tokens = write.add("Shape", choice, start=0, end=1, label="tokens")
        count = write.add("Min", tokens, write.numbers(spec.capacity), label="count")
        top = ir.node("TopK", [choice, count], {"axis": 0}, num_outputs=2)
        write.insert(top, "best", "taken")
        none = write.add("ConstantOfShape", shape, value=_one(ir.DataType.INT64, -1), label="none")
        mine = write.add("Expand", numbers, write.add("Shape", top.outputs[1]), label="mine")
        return write.add("ScatterElements", none, top.outputs[1], mine, axis=0, label="ids")

    def _where_taken(self, weights: ir.Value, ids: ir.Value, otherwise: float) -> ir.Value:
        """The weights, and another number where the id is -1, which only expert choice has."""
        if self._spec.selection != "expert_choice":
            return weights
        return self._dropped(weights, self._write.add("Less", ids, self._integer(0), label="left_out"), otherwise)

    def _dropped(self, weights: ir.Value, dropped: ir.Value, otherwise: float = 0) -> ir.Value:
        return self._write.add("Where", dropped, self._number(otherwise), weights, label="kept")

    def _without_small(self, weights: ir.Value, ids: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Step 4: pairs at or below the thresholds are dropped."""
        write, spec = self._write, self._spec
        if spec.threshold is not None:
            above = write.add("Greater", weights, self._number(spec.threshold), label="above")
            weights, ids = self._kept(weights, ids, write.add("Not", above, label="small"))
        if spec.relative_threshold > 0:
            magnitudes = write.add("Abs", weights)
            numbers = self._dropped(magnitudes, write.add("IsNaN", magnitudes))
            largest = write.add("ReduceMax", numbers, write.numbers(1), keepdims=1, label="largest")
            least = write.add("Mul", largest, self._number(spec.relative_threshold), label="least")
            weights, ids = self._kept(weights, ids, write.add("Less", magnitudes, least, label="small"))
        return weights, ids

    def _kept(self, weights: ir.Value, ids: ir.Value, dropped: ir.Value) -> tuple[ir.Value, ir.Value]:
        ids = self._write.add("Where", dropped, self._integer(-1), ids, label="ids")
        gone = self._write.add("Less", ids, self._integer(0), label="gone")
        return self._dropped(weights, gone), ids

    def _normalized(self, weights: ir.Value) -> ir.Value:
        write, spec = self._write, self._spec
        total = write.add("ReduceSum", weights, write.numbers(1), keepdims=1, label="sum")
        if spec.normalize_epsilon:
            total = write.add("Add", total, self._number(spec.normalize_epsilon), label="sum")
        if spec.normalize_floor > 0:
            total = write.add("Max", total, self._number(spec.normalize_floor), label="sum")
        return write.add("Div", weights, total, label="shares")

    def _sparse_mixer(self, logits: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Each round takes the largest remaining logit; its weight is the softmax over the logits near it."""
        write, remaining = self._write, logits
        hidden, magnitudes = self._number(-math.inf), write.add("Abs", logits)
        weights, ids = [], []
        for _ in range(self._spec.k):
            best, chosen = self._top(remaining, 1)
            scale = write.add("Max", magnitudes, best, label="scale")
            distance = write.add("Div", write.add("Sub", best, logits), scale, label="distance")
            far = write.add("Greater", distance, self._number(2 * self._spec.jitter), label="far")
            near = write.add("Softmax", write.add("Where", far, hidden, remaining), axis=-1, label="near")
            weights.append(write.add("GatherElements", near, chosen, axis=1, label="weight"))
            ids.append(chosen)
            gone = write.add("Expand", hidden, write.add("Shape", chosen), label="gone")
            remaining = write.add("ScatterElements", remaining, chosen, gone, axis=1, label="remaining")
        return write.add("Concat", *weights, axis=1, label="weights"), write.add("Concat", *ids, axis=1, label="ids")

    def _within_capacity(self, weights: ir.Value, ids: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Step 7: counts pairs [k,T] of each expert, first choices of all tokens before second choices."""
        write = self._write
        served = write.add("Transpose", ids, perm=[1, 0], label="served")
        column = write.add("Reshape", served, write.numbers(-1, 1), label="column")
        numbers = write.constant(np.arange(self._experts, dtype=np.int64), "numbers")
        mine = write.add("Cast", write.add("Equal", column, numbers), to=ir.DataType.INT64, label="mine")
        counts = write.add("CumSum", mine, self._integer(0), label="counts")
        place = write.add("ReduceSum", write.add("Mul", counts, mine), write.numbers(1), keepdims=0, label="place")
        shape = write.add("Shape", served, label="shape")
        place = write.add("Transpose", write.add("Reshape", place, shape, allowzero=1), perm=[1, 0], label="place")
        return self._kept(weights, ids, write.add("Greater", place, self._integer(self._spec.capacity), label="full"))


def _operator(write: Writer, op_type: str) -> Function:
    return lambda x: write.add(op_type, x)


def _one(dtype: ir.DataType, number: int = 1) -> ir.TensorProtocol:
    return ir.tensor(np.full(1, number, dtype.numpy()), dtype=dtype)
