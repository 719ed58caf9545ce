"""A stored matrix as the second operand of MatMul, decoded once: when onnxruntime loads the model.

onnxruntime computes what depends on constants alone before the first run, except DequantizeLinear: it leaves that to
every run, or joins it with MatMul to a product that rounds rows to 8 bits. Weights are therefore decoded by Cast,
Gather, Sub and Mul; in the file they have the bits that they are stored in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from moec.ir.weights.encode import Table
from moec.ir.weights.stored import StoredWeight
from moec.passes.graph.writer import Writer

Array = np.ndarray[Any, Any]
_WIDER = {ir.DataType.INT2: ir.DataType.INT4, ir.DataType.UINT2: ir.DataType.UINT4}
"""The types in which elements are written that ONNX has only in later opsets."""


def write_matrix(write: Writer, stored: StoredWeight, transposed: bool, dtype: ir.DataType) -> ir.Value:
    """Write the matrix [K,N] of a ``Linear`` in ``dtype``, from constants that are made when they are written to a
    file. ``transposed``: it is stored inputs first already."""
    form, (N, K) = stored.runs[0].format, stored.out_in(transposed)

    def table(name: Table, kind: ir.DataType, shape: tuple[int, int], change: Callable[[Array], Array]) -> ir.Value:
        def load() -> ir.TensorProtocol:
            numbers = stored.encoded(0, transposed).read(name)
            assert numbers is not None
            array = np.broadcast_to(change(numbers), shape).astype(kind.numpy())
            return ir.Tensor(np.ascontiguousarray(array), dtype=kind)

        lazy = ir.LazyTensor(load, dtype=kind, shape=ir.Shape(shape))
        return write.weight(lazy, "weight" if name == "data" else f"weight.{name}")

    def decoded(value: ir.Value, to: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        return value if value.dtype == to else write.add("Cast", value, to=to, label="decoded")

    if not form.quantized:
        return decoded(table("data", form.data_type, (K, N), _same), dtype)
    groups = -(-K // (form.group or K))
    of_inputs = write.constant(np.arange(K) // (form.group or K), "groups") if groups > 1 else None

    def spread(name: Table, kind: ir.DataType) -> ir.Value:
        """A table [groups,N] in float32, for each input."""
        value = decoded(table(name, kind, (groups, N), _same))
        return value if of_inputs is None else write.add("Gather", value, of_inputs, axis=0, label="decoded")

    kind = _WIDER.get(form.data_type, form.data_type)
    if kind == ir.DataType.FLOAT4E2M1:
        codes = write.add("Cast", table("data", ir.DataType.UINT4, (K, N), _codes), to=ir.DataType.INT32)
        weight = write.add("Gather", write.constant(_code_values(), "values"), codes, axis=0, label="decoded")
    else:
        weight = decoded(table("data", kind, (K, N), _same))
    if form.zero_points:
        weight = write.add("Sub", weight, spread("zero_point", kind), label="decoded")
    scale_type = _table_type(stored.runs[0].scale)
    weight = write.add("Mul", weight, spread("scale", scale_type), label="decoded")
    if form.minima:
        weight = write.add("Sub", weight, spread("minimum", _table_type(stored.runs[0].minimum)), label="decoded")
    return decoded(weight, dtype)


def _table_type(table: ir.Value | None) -> ir.DataType:
    """The type in which scales or minima are written."""
    narrow = table is not None and table.dtype == ir.DataType.FLOAT16
    return ir.DataType.FLOAT16 if narrow else ir.DataType.FLOAT


def _same(numbers: Array) -> Array:
    return numbers


def _codes(numbers: Array) -> Array:
    return numbers.view(np.uint8)


def _code_values() -> Array:
    """The numbers of float4 e2m1 by their code."""
    return np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
