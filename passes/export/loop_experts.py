"""Layers of experts as a loop over those that have rows."""

from __future__ import annotations

import dataclasses
import itertools
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from moec.common.names import node_name
from moec.ir import dialect
from moec.ir.dialect import DispatchSpec
from moec.ir.expert_weights import ExpertWeights, Part, readable_weights
from moec.passes.export.decoded_expert import StoredExperts
from moec.passes.export.expert_loop import ExpertLoops
from moec.passes.export.packed_experts import bits_of, width_note
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import remove_unused, replace_node, value_names
from moec.passes.graph.expert_body import activated, clamped
from moec.passes.graph.unfused import with_route
from moec.passes.graph.writer import Writer


@dataclasses.dataclass(frozen=True)
class LoopExperts:
    """Spells ``moec.Experts`` and ``moec.MoE`` as dispatched rows and a loop over the experts that have any.

    1. A step picks the weights of one expert, decodes them if they are stored in a narrower format, and computes all
       of its rows. Experts in other formats have a loop of their own.
    2. Numbers of 16 bits are computed in float32.
    3. Experts that return their input are a product and a sum. Routing weights on the input multiply its rows.
    4. Experts whose weights are computed when the model runs stay; a warning says so.

    ``accumulate-experts`` spells experts whose weights are values, for programs without sequences. Each of its steps
    copies the results of all tokens, and weights in int4 are decoded for all experts in each run. Milliseconds of one
    thread of onnxruntime, here and there (no gate, 8 experts chosen; numbers are experts, width x units, tokens): 64,
    512x256, float32: 1.1 and 1.0 (1), 24 and 27 (256), 427 and 595 (8192); int4: 2.6 and 42 (1), 34 and 67 (256). 128,
    1024x128, float32: 2.4 and 1.0 (1), 43 and 53 (256), 163 and 354 (2048).

    ::

        (float[T,2] x, float[T,3] logits) => (float[T,2] y) <float[3,4,2] up, float[3,2,4] down> {
           w, e = moec.Route <k = 2> (logits)
           y = moec.Experts <activation = "gelu", gate_layout = "none"> (x, w, e, up, down)
        }
            loop-experts,eliminate-common-subexpressions ->
        (float[T,2] x, float[T,3] logits) => (float[T,2] y) <bool "y.true" = {1}, float[0,2] "y.empty",
           float[3,2,4] "y.up.data", float[3,4,2] "y.down.data", int64[0] "y.scalar" = {}, int64[1] "y.numbers"
           = {0}, int64[1] "y.numbers_10" = {2}, int64[1] "y.numbers_2" = {3}, int64[1] "y.numbers_3" = {1},
           int64[1] "y.numbers_4" = {4}, int64[1] "y.numbers_5" = {-1}, int64[1] "y.numbers_9" = {2147483648}> {
           w, e = moec.Route <k = 2> (logits)
           "y.wide" = Cast <to = 1> (w)
           "y.offsets", "y.positions", "y.tokens", "y.owners" = moec.Dispatch <expert_count = 3> (e)
           "y.rows" = Gather <axis = 0> (x, "y.tokens")
           "y.bounds" = Cast <to = 7> ("y.offsets")
           "y.part" = Slice ("y.bounds", "y.numbers", "y.numbers_2")
           "y.part_2" = Slice ("y.bounds", "y.numbers_3", "y.numbers_4")
           "y.Greater" = Greater ("y.part_2", "y.part")
           "y.used" = NonZero ("y.Greater")
           "y.used_2" = Reshape ("y.used", "y.numbers_5")
           "y.Shape" = Shape ("y.used_2")
           "y.Reshape" = Reshape ("y.Shape", "y.scalar")
           "y.first_results" = SequenceConstruct ("y.empty")
           "y.results" = Loop <body: graph = one_expert (int64 "y.step", bool "y.going", seq(float[])
              "y.before") => (bool "y.goes_on", seq(float[]) "y.goes_on.after")
           {
              "y.goes_on.expert" = Gather <axis = 0> ("y.used_2", "y.step")
              "y.goes_on.one" = Unsqueeze ("y.goes_on.expert", "y.numbers")
              "y.goes_on.bound" = Gather <axis = 0> ("y.part", "y.goes_on.one")
              "y.goes_on.bound_2" = Gather <axis = 0> ("y.part_2", "y.goes_on.one")
              "y.goes_on.own_rows" = Slice ("y.rows", "y.goes_on.bound", "y.goes_on.bound_2", "y.numbers")
              "y.goes_on.picked" = Gather <axis = 0> ("y.up.data", "y.goes_on.expert")
              "y.goes_on.up" = MatMul ("y.goes_on.own_rows", "y.goes_on.picked")
              "y.goes_on.Gelu" = Gelu ("y.goes_on.up")
              "y.goes_on.picked_2" = Gather <axis = 0> ("y.down.data", "y.goes_on.expert")
              "y.goes_on.down" = MatMul ("y.goes_on.Gelu", "y.goes_on.picked_2")
              "y.goes_on.after" = SequenceInsert ("y.before", "y.goes_on.down")
              "y.goes_on" = Identity ("y.going")
           }> ("y.Reshape", "y.true", "y.first_results")
           "y.rows_2" = ConcatFromSequence <axis = 0> ("y.results")
           "y.row_count" = Shape <end = 1, start = 0> ("y.rows")
           "y.part_3" = Slice ("y.bounds", "y.numbers_5", "y.numbers_9")
           "y.left" = Sub ("y.row_count", "y.part_3")
           "y.left_shape" = Concat <axis = 0> ("y.left", "y.numbers_10")
           "y.rest" = ConstantOfShape <value: tensor = float[1] {0.0}> ("y.left_shape")
           "y.results_2" = Concat <axis = 0> ("y.rows_2", "y.rest")
           y = moec.Combine ("y.results_2", "y.wide", "y.positions")
        }
    """

    name: ClassVar[str] = "loop-experts"
    exactness: ClassVar[Exactness] = "reassociating"

    def apply(self, model: ir.Model, report: Report) -> bool:
        nodes = [node for node in model.graph if dialect.has_experts(node)]
        for node in nodes:
            experts = with_route(model.graph, node)
            weights = readable_weights(experts)
            if isinstance(weights, str):
                report.warn(self.name, node_name(experts), f"stays as it is: {weights}")
                continue
            forms = {form for part in weights.parts for form in weights.operand(part).formats if form.quantized}
            for note in sorted(filter(None, (width_note(form, 4 if bits_of(form) < 8 else 8) for form in forms))):
                report.note(self.name, node_name(experts), note)
            operands = [value for value in experts.inputs if value is not None]
            y = _DispatchedLoop(experts, weights).written()
            replace_node(experts, [y])
            for value in dict.fromkeys(operands):
                remove_unused(model.graph, value)
        return bool(nodes)


class _DispatchedLoop:
    """The graph in the place of one node."""

    def __init__(self, node: ir.Node, weights: ExpertWeights) -> None:
        assert isinstance(node.graph, ir.Graph)
        self._write, self._weights = Writer(node, value_names(node.graph)), weights
        inputs = dialect.inputs_of(node)
        x, shares, ids = inputs["x"], inputs["weights"], inputs["experts"]
        assert x is not None and shares is not None and ids is not None
        self._result = x.dtype or ir.DataType.FLOAT
        self._dtype = ir.DataType.DOUBLE if self._result == ir.DataType.DOUBLE else ir.DataType.FLOAT
        self._x, self._shares, self._ids = self._wide(x), self._wide(shares), ids

    def _wide(self, value: ir.Value) -> ir.Value:
        return value if value.dtype == self._dtype else self._write.add("Cast", value, to=self._dtype, label="wide")

    def written(self) -> ir.Value:
        """Write it. Returns the result [T,d]."""
        write, weights, spec = self._write, self._weights, self._weights.spec
        added = None
        if spec.identity_experts:
            added = self._identity()
        dispatch = dialect.make_node("Dispatch", {"experts": self._ids}, DispatchSpec(weights.experts))
        write.insert(dispatch, "offsets", "positions", "tokens", "owners")
        offsets, positions, tokens, _ = dispatch.outputs
        rows = write.add("Gather", self._x, tokens, axis=0, label="rows")
        shares = self._shares
        if spec.weight_on_input:
            rows, shares = self._weighted_rows(rows, positions)
        loops = ExpertLoops(write, rows, offsets, weights.width, self._dtype)
        for first, count in self._segments():
            self._loop(loops, first, count)
        combined = {"rows": loops.joined(), "weights": shares, "positions": positions}
        y = write.insert(dialect.make_node("Combine", dict(combined)), "combined")
        y = y if added is None else write.add("Add", y, added, label="with_identity")
        return y if self._result == self._dtype else write.add("Cast", y, to=self._result, label="narrow")

    def _number(self, number: float) -> ir.Value:
        return self._write.weight(ir.tensor(np.array(number, self._dtype.numpy()), dtype=self._dtype), "number")

    def _identity(self) -> ir.Value:
        """The results of experts that return their input. Their pairs are dispatched no more: ids become -1."""
        write = self._write
        last = write.constant(np.array(self._weights.experts - 1, np.int32), "last")
        returns = write.add("Greater", self._ids, last, label="returns")
        own = write.add("Where", returns, self._shares, self._number(0), label="identity_weights")
        total = write.add("ReduceSum", own, write.numbers(1), keepdims=1, label="identity_share")
        none = write.constant(np.array(-1, np.int32), "none")
        stored = write.add("Where", returns, none, self._ids, label="stored_ids")
        stored.type, stored.shape = ir.TensorType(ir.DataType.INT32), self._ids.shape
        self._ids = stored
        return write.add("Mul", self._x, total, label="identity")

    def _weighted_rows(self, rows: ir.Value, positions: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Rows times their weights, and weights of 1. The position -1 is that of the last row, which then belongs to no
        expert."""
        write, flat = self._write, self._write.numbers(-1)
        places = write.add("Reshape", positions, flat, label="places")
        pairs = write.add("Reshape", self._shares, flat, label="pairs")
        column = write.add("Unsqueeze", write.add("ScatterElements", pairs, places, pairs), write.numbers(1))
        filling = ir.tensor(np.ones(1, self._dtype.numpy()), dtype=self._dtype)
        ones = write.add("ConstantOfShape", write.add("Shape", self._shares), value=filling, label="ones")
        return write.add("Mul", rows, column, label="weighted"), ones

    def _segments(self) -> list[tuple[int, int]]:
        """Consecutive experts whose parts are each in one run: the first and their number."""
        starts = {run.first for part in self._weights.parts for run in self._weights.operand(part).runs}
        ends = [*sorted(starts), self._weights.experts]
        return [(first, end - first) for first, end in itertools.pairwise(ends)]

    def _loop(self, loops: ExpertLoops, first: int, count: int) -> None:
        weights, spec = self._weights, self._weights.spec
        stored = {part: self._stored(part, first, count) for part in weights.parts}
        biases = {part: self._bias(part, first, count) for part in weights.parts}

        def body(inner: Writer, expert: ir.Value, rows: ir.Value) -> ir.Value:
            def project(part: Part, values: ir.Value) -> ir.Value:
                y = inner.add("MatMul", values, stored[part].matrix(inner, expert), label=part)
                bias = biases[part]
                return y if bias is None else inner.add("Add", y, inner.add("Gather", bias, expert, axis=0))

            before = {part: project(part, rows) for part in weights.before}
            hidden = activated(inner, spec, before.get("gate"), before["up"], self._dtype)
            y = project("down", hidden)
            return clamped(inner, y, spec.output_limit, self._dtype) if spec.output_limit > 0 else y

        loops.over(first, count, body)

    def _stored(self, part: Part, first: int, count: int) -> StoredExperts:
        weights = self._weights
        sizes = (weights.hidden, weights.width) if part == "down" else (weights.inner, weights.hidden)
        run = weights.operand(part).run_of(first)
        return StoredExperts(
            self._write, part, run, sizes, lambda expert: weights.own(part, first + expert), count, self._dtype
        )

    def _bias(self, part: Part, first: int, count: int) -> ir.Value | None:
        bias = self._weights.bias(part)
        if bias is None:
            return None
        own = np.ascontiguousarray(bias[first : first + count]).astype(self._dtype.numpy())
        return self._write.constant(own, f"{part}_bias")
