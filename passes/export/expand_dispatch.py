"""Experts over dispatched rows in ONNX operators."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.names import node_name
from moec.ir import dialect
from moec.ir.dialect import DispatchSpec
from moec.ir.rule import known_size
from moec.ir.weights.stored import StoredWeight
from moec.passes.export.decoded_expert import StoredExperts
from moec.passes.export.expert_loop import ExpertLoops
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import remove_unused, replace_node, value_names
from moec.passes.graph.writer import NotDecomposableError, Writer

_INT64 = ir.DataType.INT64


@dataclasses.dataclass(frozen=True)
class ExpandDispatch:
    """Spells ``moec.Dispatch``, ``moec.GroupedMatMul`` and ``moec.Combine`` in ONNX operators.

    1. Dispatch sorts the pairs by TopK, whose results are in the order of their numbers among equals, and counts them
       by ScatterElements.
    2. GroupedMatMul is a loop over the experts that have rows (:mod:`moec.passes.export.expert_loop`); weights that are
       stored in a narrower format are decoded for one expert at a time. Weights that are computed when the model runs
       are picked from the result.
    3. Combine gathers the rows of each token and multiplies them with its weights.

    ::

        (float[T,2] x, float[T,3] logits) => (float[T,2] y) {
           w, e = moec.Route <k = 2> (logits)
           offsets, positions, tokens, owners = moec.Dispatch <expert_count = 3> (e)
           rows = Gather <axis = 0> (x, tokens)
           own = Relu (rows)
           y = moec.Combine (own, w, positions)
        }
            infer-shapes,expand-dispatch,remove-dead-nodes ->
        (float[T,2] x, float[T,3] logits) => (float[T,2] y) <float "y.nothing" = {0.0}, int32 "offsets.beyond" =
           {3}, int32 "offsets.zero" = {0}, int32 "y.zero" = {0}, int64 "offsets.k" = {2}, int64 "offsets.none"
           = {-1}, int64 "offsets.number" = {0}, int64 "offsets.number_2" = {1}, int64[0] "offsets.scalar" = {},
           int64[1] "offsets.numbers" = {-1}, int64[1] "y.numbers" = {1}, int64[1] "y.numbers_2" = {1}> {
           w, e = moec.Route <k = 2> (logits)
           "offsets.Less" = Less (e, "offsets.zero")
           "offsets.ranked" = Where ("offsets.Less", "offsets.beyond", e)
           "offsets.flat" = Reshape ("offsets.ranked", "offsets.numbers")
           "offsets.count" = Shape ("offsets.flat")
           "offsets.sorted", "offsets.pairs" = TopK <axis = 0, largest = 0> ("offsets.flat", "offsets.count")
           "offsets.end" = Reshape ("offsets.count", "offsets.scalar")
           "offsets.rows" = Range ("offsets.number", "offsets.end", "offsets.number_2")
           "offsets.places" = ScatterElements <axis = 0> ("offsets.pairs", "offsets.pairs", "offsets.rows")
           "offsets.Less_2" = Less ("offsets.flat", "offsets.beyond")
           "offsets.places_2" = Where ("offsets.Less_2", "offsets.places", "offsets.none")
           "offsets.Shape" = Shape (e)
           "offsets.positions" = Reshape <allowzero = 1> ("offsets.places_2", "offsets.Shape")
           "offsets.tokens" = Div ("offsets.pairs", "offsets.k")
           "offsets.narrow" = Cast <to = 6> ("offsets.positions")
           "offsets.narrow_2" = Cast <to = 6> ("offsets.tokens")
           rows = Gather <axis = 0> (x, "offsets.narrow_2")
           own = Relu (rows)
           "y.dropped" = Less ("offsets.narrow", "y.zero")
           "y.kept" = Where ("y.dropped", "y.nothing", w)
           "y.Max" = Max ("offsets.narrow", "y.zero")
           "y.picked" = Gather <axis = 0> (own, "y.Max")
           "y.shares" = Unsqueeze ("y.kept", "y.numbers")
           "y.product" = MatMul ("y.shares", "y.picked")
           y = Squeeze ("y.product", "y.numbers_2")
        }
    """

    name: ClassVar[str] = "expand-dispatch"
    exactness: ClassVar[Exactness] = "reassociating"

    def apply(self, model: ir.Model, report: Report) -> bool:
        nodes = [node for node in model.graph if dialect.is_moec(node) and node.op_type in _SPELLINGS]
        for node in nodes:
            operands = [value for value in node.inputs if value is not None]
            try:
                results = _SPELLINGS[node.op_type](Writer(node, value_names(model.graph)))
            except NotDecomposableError as error:
                report.warn(self.name, node_name(node), f"stays as it is: {error}")
                continue
            replace_node(node, results)
            for value in dict.fromkeys(operands):
                remove_unused(model.graph, value)
        return bool(nodes)


def _dispatch(write: Writer) -> list[ir.Value | None]:
    E, ids = dialect.spec_of(write.node, DispatchSpec).expert_count, write.required(0, "experts")
    k = known_size(ids, 1)
    if k is None:
        raise NotDecomposableError("the number of experts per token is not known")
    beyond = write.constant(np.array(E, np.int32), "beyond")
    zero = write.constant(np.array(0, np.int32), "zero")
    ranked = write.add("Where", write.add("Less", ids, zero), beyond, ids, label="ranked")
    flat = write.add("Reshape", ranked, write.numbers(-1), label="flat")
    count = write.add("Shape", flat, label="count")
    top = ir.node("TopK", [flat, count], {"largest": 0, "axis": 0}, num_outputs=2)
    write.insert(top, "sorted", "pairs")
    ordered, pairs = top.outputs
    scalar = write.constant(np.zeros(0, np.int64), "scalar")
    end = write.add("Reshape", count, scalar, label="end")
    start, step = (write.constant(np.array(number, np.int64), "number") for number in (0, 1))
    rows = write.add("Range", start, end, step, label="rows")
    places = write.add("ScatterElements", pairs, pairs, rows, axis=0, label="places")
    none = write.constant(np.array(-1, np.int64), "none")
    places = write.add("Where", write.add("Less", flat, beyond), places, none, label="places")
    positions = write.add("Reshape", places, write.add("Shape", ids), allowzero=1, label="positions")
    tokens = write.add("Div", pairs, write.constant(np.array(k, np.int64), "k"), label="tokens")
    last = write.constant(np.array(E - 1, np.int32), "last")
    owners = write.add("Min", ordered, last, label="owners")
    zeros = write.constant(np.zeros(E + 1, np.int32), "zeros")
    ones = write.add("ConstantOfShape", count, value=ir.tensor(np.ones(1, np.int32)), label="ones")
    counts = write.add("ScatterElements", zeros, flat, ones, axis=0, reduction="add", label="counts")
    sums = write.add("CumSum", counts, write.constant(np.array(0, np.int64), "axis"), exclusive=1, label="offsets")
    narrow = [write.add("Cast", value, to=ir.DataType.INT32, label="narrow") for value in (positions, tokens)]
    return [sums, narrow[0], narrow[1], owners]


def _combine(write: Writer) -> list[ir.Value | None]:
    rows, weights, positions = (write.required(at, name) for at, name in enumerate(("rows", "weights", "positions")))
    zero = write.constant(np.array(0, np.int32), "zero")
    dropped = write.add("Less", positions, zero, label="dropped")
    nothing = ir.tensor(np.array(0, (weights.dtype or ir.DataType.FLOAT).numpy()), dtype=weights.dtype)
    kept = write.add("Where", dropped, write.weight(nothing, "nothing"), weights, label="kept")
    if weights.dtype != rows.dtype and rows.dtype is not None:
        kept = write.add("Cast", kept, to=rows.dtype, label="kept")
    picked = write.add("Gather", rows, write.add("Max", positions, zero), axis=0, label="picked")
    shares = write.add("Unsqueeze", kept, write.numbers(1), label="shares")
    product = write.add("MatMul", shares, picked, label="product")
    return [write.add("Squeeze", product, write.numbers(1), label="combined")]


def _grouped(write: Writer) -> list[ir.Value | None]:
    x, weights, offsets, bias = (dialect.inputs_of(write.node)[name] for name in ("x", "weights", "offsets", "bias"))
    assert x is not None and weights is not None and offsets is not None
    width = known_size(weights, 2)
    if width is None:
        raise NotDecomposableError("the width of its result is not known")
    result = x.dtype or ir.DataType.FLOAT
    dtype = ir.DataType.DOUBLE if result == ir.DataType.DOUBLE else ir.DataType.FLOAT
    rows = x if result == dtype else write.add("Cast", x, to=dtype, label="wide")
    loops = ExpertLoops(write, rows, offsets, width, dtype)
    if bias is not None and bias.dtype != dtype:
        bias = write.add("Cast", bias, to=dtype, label="wide_bias")
    for first, count, matrix in _runs(write, weights, dtype):

        def body(
            inner: Writer, expert: ir.Value, own: ir.Value, first: int = first, matrix: _Matrix = matrix
        ) -> ir.Value:
            y = inner.add("MatMul", own, matrix(inner, expert), label="product")
            if bias is None:
                return y
            number = inner.add("Add", expert, write.constant(np.array(first, np.int64), "first")) if first else expert
            return inner.add("Add", y, inner.add("Gather", bias, number, axis=0), label="biased")

        loops.over(first, count, body)
    y = loops.joined()
    return [y if result == dtype else write.add("Cast", y, to=result, label="narrow")]


_Matrix = Callable[[Writer, ir.Value], ir.Value]


def _runs(write: Writer, weights: ir.Value, dtype: ir.DataType) -> list[tuple[int, int, _Matrix]]:
    """Runs of experts: the first, their number, and a function that writes the matrix of one of them."""
    try:
        stored = StoredWeight.of(weights)
    except UnsupportedError:
        count = known_size(weights, 0)
        if count is None:
            raise NotDecomposableError("the number of its experts is not known") from None
        wide = weights if weights.dtype == dtype else write.add("Cast", weights, to=dtype, label="wide_weights")
        return [(0, count, lambda inner, expert: inner.add("Gather", wide, expert, axis=0, label="picked"))]
    runs: list[tuple[int, int, _Matrix]] = []
    for run in stored.runs:
        experts = StoredExperts(
            write, "weights", run, run.shape, lambda expert, run=run: run.encoded(run.first + expert),
            run.count, dtype,
        )  # fmt: skip
        runs.append((run.first, run.count, experts.matrix))
    return runs


_SPELLINGS = {"Dispatch": _dispatch, "GroupedMatMul": _grouped, "Combine": _combine}
