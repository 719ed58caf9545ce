"""``moec.GroupedMatMul`` as a loop over the experts that have rows, for weights that are values."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moec.ir import dialect
from moec.ir.dialect import ProductSpec
from moec.passes.export.accumulation import accumulated
from moec.passes.export.rounding import write_rounded
from moec.passes.graph.writer import Writer


def write_grouped_product(write: Writer) -> ir.Value:
    """Write the node's result [R,N]."""
    x, weights, offsets, bias = (dialect.inputs_of(write.node)[name] for name in ("x", "weights", "offsets", "bias"))
    assert x is not None and weights is not None and offsets is not None
    spec, result = dialect.spec_of(write.node, ProductSpec), x.dtype or ir.DataType.FLOAT
    dtype = ir.DataType.DOUBLE if result == ir.DataType.DOUBLE else ir.DataType.FLOAT
    numbers = write.numbers

    def wide(to: Writer, value: ir.Value, source: ir.Value) -> ir.Value:
        return value if source.dtype == dtype else to.add("Cast", value, to=dtype, label="wide")

    rows = wide(write, x, x)
    bounds = write.add("Cast", offsets, to=ir.DataType.INT64, label="bounds")
    starts = write.add("Slice", bounds, numbers(0), numbers(-1), label="starts")
    ends = write.add("Slice", bounds, numbers(1), numbers(1 << 31), label="ends")
    used = write.add("Reshape", write.add("NonZero", write.add("Greater", ends, starts)), numbers(-1), label="used")
    heights = write.add("Shape", x, start=0, end=1, label="height")
    shape = write.add("Concat", heights, write.add("Shape", weights, start=2, end=3), axis=0, label="shape")
    nothing = write.add("ConstantOfShape", shape, value=ir.tensor(np.zeros(1, dtype.numpy()), dtype=dtype))
    increment = write.constant(np.array(1, np.int64), "increment")

    def step(inner: Writer, expert: ir.Value) -> tuple[ir.Value, ir.Value]:
        start, end = (inner.add("Gather", bound, expert, axis=0, label="bound") for bound in (starts, ends))
        places = inner.add("Unsqueeze", inner.add("Range", start, end, increment), numbers(1), label="places")
        own = write_rounded(inner, write, spec, inner.add("GatherND", rows, places, label="rows"))
        matrix = wide(inner, inner.add("Gather", weights, expert, axis=0, label="picked"), weights)
        y = inner.add("MatMul", own, matrix, label="product")
        if bias is None:
            return places, y
        return places, inner.add("Add", y, wide(inner, inner.add("Gather", bias, expert, axis=0), bias))

    y = accumulated(write, used, nothing, dtype, step)
    return y if result == dtype else write.add("Cast", y, to=result, label="narrow")
