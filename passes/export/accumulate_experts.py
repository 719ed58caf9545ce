"""Layers of experts whose weights are values, as a loop that adds the results of each expert to those of its tokens."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from moec.common.names import node_name
from moec.ir import dialect
from moec.ir.dialect import ExpertsSpec, ProductSpec
from moec.passes.export.accumulated_product import write_grouped_product
from moec.passes.export.accumulation import accumulated, used_experts
from moec.passes.export.rounding import ROUNDED, write_rounded
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import replace_node, value_names
from moec.passes.graph.expert_body import activated, clamped
from moec.passes.graph.unfused import with_route
from moec.passes.graph.writer import Writer


@dataclasses.dataclass(frozen=True)
class AccumulateExperts:
    """Spells ``moec.Experts``, ``moec.MoE`` and ``moec.GroupedMatMul`` as loops over the experts that have rows.

    1. A step picks the weights of one expert from the weight operands, computes the rows of its tokens, and adds them
       to the result by ScatterND. No size of a weight is written down, so that the loop is the body of a function for
       weights of every size.
    2. Numbers of 16 bits are computed in float32.
    3. Rows are rounded as the arithmetic of the node asks; a node whose arithmetic ONNX cannot spell stays, and a
       warning says so.

    ::

        (float[T,2] x, float[T,2] w, int32[T,2] e, float[3,2,4] up, float[3,4,2] down) => (float[T,2] y) {
           y = moec.Experts <activation = "relu", gate_layout = "none", up_transposed = 1, down_transposed = 1>
              (x, w, e, up, down)
        }
            infer-shapes,accumulate-experts,eliminate-common-subexpressions ->
        (float[T,2] x, float[T,2] w, int32[T,2] e, float[3,2,4] up, float[3,4,2] down) => (float[T,2] y) <int64[1]
           "y.numbers" = {-1}, int64[1] "y.numbers_2" = {1}, int64[1] "y.numbers_3" = {0}, int64[0] "y.scalar" = {},
           bool "y.true" = {1}> {
           "y.ids" = Cast <to = 7> (e)
           "y.tokens" = Shape <end = 1, start = 0> (x)
           "y.width" = Shape <end = 3, start = 2> (down)
           "y.expert_count" = Shape <end = 1, start = 0> (down)
           "y.shape" = Concat <axis = 0> ("y.tokens", "y.width")
           "y.nothing" = ConstantOfShape <value: tensor = float[1] {0.0}> ("y.shape")
           "y.flat" = Reshape ("y.ids", "y.numbers")
           "y.stored" = Min ("y.flat", "y.expert_count")
           "y.slots" = Add ("y.expert_count", "y.numbers_2")
           "y.flags" = ConstantOfShape <value: tensor = int64[1] {0}> ("y.slots")
           "y.Shape" = Shape ("y.flat")
           "y.ones" = ConstantOfShape <value: tensor = int64[1] {1}> ("y.Shape")
           "y.flags_2" = ScatterElements <axis = 0> ("y.flags", "y.stored", "y.ones")
           "y.flags_3" = Slice ("y.flags_2", "y.numbers_3", "y.expert_count")
           "y.NonZero" = NonZero ("y.flags_3")
           "y.used" = Reshape ("y.NonZero", "y.numbers")
           "y.Shape_2" = Shape ("y.used")
           "y.Reshape" = Reshape ("y.Shape_2", "y.scalar")
           y = Loop <body: graph = one_expert (int64 "y.step", bool "y.going", float[] "y.before") => (bool
              "y.goes_on", float[] "y.goes_on.after")
           {
              "y.goes_on.expert" = Gather <axis = 0> ("y.used", "y.step")
              "y.goes_on.Equal" = Equal ("y.ids", "y.goes_on.expert")
              "y.goes_on.places" = NonZero ("y.goes_on.Equal")
              "y.goes_on.pairs" = Transpose <perm = [1, 0]> ("y.goes_on.places")
              "y.goes_on.share" = GatherND (w, "y.goes_on.pairs")
              "y.goes_on.share_2" = Unsqueeze ("y.goes_on.share", "y.numbers_2")
              "y.goes_on.own_tokens" = Slice ("y.goes_on.pairs", "y.numbers_3", "y.numbers_2", "y.numbers_2")
              "y.goes_on.rows" = GatherND (x, "y.goes_on.own_tokens")
              "y.goes_on.up" = Gather <axis = 0> (up, "y.goes_on.expert")
              "y.goes_on.product" = MatMul ("y.goes_on.rows", "y.goes_on.up")
              "y.goes_on.Relu" = Relu ("y.goes_on.product")
              "y.goes_on.down" = Gather <axis = 0> (down, "y.goes_on.expert")
              "y.goes_on.product_2" = MatMul ("y.goes_on.Relu", "y.goes_on.down")
              "y.goes_on.weighted" = Mul ("y.goes_on.product_2", "y.goes_on.share_2")
              "y.goes_on.after" = ScatterND <reduction = "add"> ("y.before", "y.goes_on.own_tokens",
                 "y.goes_on.weighted")
              "y.goes_on" = Identity ("y.going")
           }> ("y.Reshape", "y.true", "y.nothing")
        }
    """

    name: ClassVar[str] = "accumulate-experts"
    exactness: ClassVar[Exactness] = "reassociating"

    def apply(self, model: ir.Model, report: Report) -> bool:
        changed = False
        for node in [node for node in model.graph if dialect.has_experts(node) or _is_grouped(node)]:
            arithmetic = dialect.spec_of(node, ProductSpec).arithmetic
            if arithmetic not in ROUNDED:
                report.warn(self.name, node_name(node), f"stays as it is: ONNX does not round to {arithmetic}")
                continue
            if _is_grouped(node):
                y = write_grouped_product(Writer(node, value_names(model.graph)))
            else:
                node = with_route(model.graph, node)
                y = _Accumulation(node).written()
            replace_node(node, [y])
            changed = True
        return changed


def _is_grouped(node: ir.Node) -> bool:
    return dialect.is_moec(node, "GroupedMatMul")


class _Accumulation:
    """The graph in the place of one ``moec.Experts`` node."""

    def __init__(self, node: ir.Node) -> None:
        assert isinstance(node.graph, ir.Graph)
        self._write, self._spec = Writer(node, value_names(node.graph)), dialect.spec_of(node, ExpertsSpec)
        self._inputs = dialect.inputs_of(node)
        self._result = self._given("x").dtype or ir.DataType.FLOAT
        self._dtype = ir.DataType.DOUBLE if self._result == ir.DataType.DOUBLE else ir.DataType.FLOAT
        self._x, self._shares = (self._wide(self._write, self._given(name)) for name in ("x", "weights"))
        self._ids = self._write.add("Cast", self._given("experts"), to=ir.DataType.INT64, label="ids")

    def _given(self, name: str) -> ir.Value:
        value = self._inputs[name]
        assert value is not None
        return value

    def _wide(self, write: Writer, value: ir.Value) -> ir.Value:
        return value if value.dtype == self._dtype else write.add("Cast", value, to=self._dtype, label="wide")

    def written(self) -> ir.Value:
        """Write it. Returns the result [T,d]."""
        write, down = self._write, self._given("down")
        axis = 2 if self._spec.down_transposed else 1
        tokens = write.add("Shape", self._x, start=0, end=1, label="tokens")
        width = write.add("Shape", down, start=axis, end=axis + 1, label="width")
        count = write.add("Shape", down, start=0, end=1, label="expert_count")
        shape = write.add("Concat", tokens, width, axis=0, label="shape")
        zero = ir.tensor(np.zeros(1, self._dtype.numpy()), dtype=self._dtype)
        nothing = write.add("ConstantOfShape", shape, value=zero, label="nothing")
        y = accumulated(write, used_experts(write, self._ids, count), nothing, self._dtype, self._rows_of)
        if self._spec.identity_experts:
            y = write.add("Add", y, self._identity(count), label="with_identity")
        return y if self._result == self._dtype else write.add("Cast", y, to=self._result, label="narrow")

    def _identity(self, count: ir.Value) -> ir.Value:
        """The results of experts that return their input."""
        write = self._write
        returns = write.add("GreaterOrEqual", self._ids, count, label="returns")
        number = ir.tensor(np.array(0, self._dtype.numpy()), dtype=self._dtype)
        own = write.add("Where", returns, self._shares, write.weight(number, "number"), label="identity_weights")
        total = write.add("ReduceSum", own, write.numbers(1), keepdims=1, label="identity_share")
        return write.add("Mul", self._x, total, label="identity")

    def _rows_of(self, inner: Writer, expert: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The tokens [n,1] of an expert, and its results [n,d] for them, times their weights."""
        spec, write = self._spec, self._write
        places = inner.add("NonZero", inner.add("Equal", self._ids, expert), label="places")
        pairs = inner.add("Transpose", places, perm=[1, 0], label="pairs")
        share = inner.add("GatherND", self._shares, pairs, label="share")
        share = inner.add("Unsqueeze", share, write.numbers(1), label="share")
        tokens = inner.add("Slice", pairs, write.numbers(0), write.numbers(1), write.numbers(1), label="own_tokens")
        rows = inner.add("GatherND", self._x, tokens, label="rows")
        if spec.weight_on_input:
            rows = inner.add("Mul", rows, share, label="weighted")
        gate, up = self._projected(inner, rows, expert)
        hidden = activated(inner, spec, gate, up, self._dtype)
        size = self._size(inner, expert)
        if size is not None:
            hidden = inner.add("Slice", hidden, write.numbers(0), size, write.numbers(1), label="own_units")
        y = self._product(inner, hidden, expert, "down", spec.down_transposed, size)
        if spec.output_limit > 0:
            y = clamped(inner, y, spec.output_limit, self._dtype)
        return tokens, y if spec.weight_on_input else inner.add("Mul", y, share, label="weighted")

    def _size(self, inner: Writer, expert: ir.Value) -> ir.Value | None:
        """The number of hidden units [1] of an expert; None where all have all units."""
        if not self._spec.hidden_sizes:
            return None
        sizes = self._write.constant(np.array(self._spec.hidden_sizes, np.int64), "hidden_sizes")
        return inner.add("Gather", sizes, inner.add("Unsqueeze", expert, self._write.numbers(0)), label="size")

    def _projected(self, inner: Writer, rows: ir.Value, expert: ir.Value) -> tuple[ir.Value | None, ir.Value]:
        """Gate, where there is one, and up projection [n,f] of rows."""
        spec = self._spec
        both = self._product(inner, rows, expert, "up", spec.up_transposed)
        if not spec.fused:
            gated = spec.gated and self._product(inner, rows, expert, "gate", spec.up_transposed)
            return gated or None, both
        numbers = self._write.numbers
        if spec.gate_layout == "interleaved":
            ends = (numbers(1 << 31), numbers(1), numbers(2))
            first, second = (inner.add("Slice", both, numbers(start), *ends, label="half") for start in (0, 1))
        else:
            halves = ir.node("Split", [both], {"axis": 1, "num_outputs": 2}, num_outputs=2)
            inner.insert(halves, "half", "half")
            first, second = halves.outputs
        return (second, first) if spec.gate_layout == "up_gate" else (first, second)

    def _product(
        self, inner: Writer, rows: ir.Value, expert: ir.Value, part: str, transposed: bool, size: ir.Value | None = None
    ) -> ir.Value:
        """Rows times the matrix of an expert, of whose inputs the first ``size`` count, plus its bias."""
        numbers = self._write.numbers
        matrix = inner.add("Gather", self._given(part), expert, axis=0, label=part)
        matrix = self._wide(inner, matrix) if self._given(part).dtype != self._dtype else matrix
        if not transposed:
            matrix = inner.add("Transpose", matrix, perm=[1, 0], label=part)
        if size is not None:
            matrix = inner.add("Slice", matrix, numbers(0), size, numbers(0), label=part)
        y = inner.add("MatMul", write_rounded(inner, self._write, self._spec, rows), matrix, label="product")
        bias = self._inputs[f"{part}_bias"]
        if bias is None:
            return y
        own = inner.add("Gather", bias, expert, axis=0, label="bias")
        return inner.add("Add", y, own if bias.dtype == self._dtype else self._wide(inner, own), label="biased")
