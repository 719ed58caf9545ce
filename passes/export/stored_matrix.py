"""A stored matrix as the second operand of MatMul, in types that onnxruntime's CPU decodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir.weights.encode import Table, decode
from moec.ir.weights.format import WeightFormat
from moec.ir.weights.stored import StoredWeight
from moec.passes.graph.writer import Writer

Array = np.ndarray[Any, Any]
_WIDER = {ir.DataType.INT2: ir.DataType.INT4, ir.DataType.UINT2: ir.DataType.UINT4}
_TAKEN = (ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8)


def write_matrix(write: Writer, stored: StoredWeight, transposed: bool, dtype: ir.DataType) -> ir.Value:
    """Write the matrix [K,N] of a ``Linear`` in ``dtype``, from constants that are made when they are written to a
    file. ``transposed``: it is stored inputs first already."""
    form, (N, K) = stored.runs[0].format, stored.out_in(transposed)

    def table(name: Table, kind: ir.DataType, shape: tuple[int, int], change: Callable[[Array], Array]) -> ir.Value:
        def load() -> ir.TensorProtocol:
            numbers = stored.encoded(0, transposed).read(name)
            assert numbers is not None
            array = np.ascontiguousarray(np.broadcast_to(change(numbers).astype(kind.numpy()), shape))
            return ir.Tensor(array, dtype=kind)

        lazy = ir.LazyTensor(load, dtype=kind, shape=ir.Shape(shape))
        return write.weight(lazy, "weight" if name == "data" else f"weight.{name}")

    if not form.quantized:
        data = table("data", form.data_type, (K, N), _same)
        return data if form.data_type == dtype else write.add("Cast", data, to=dtype, label="weight")
    kind = _WIDER.get(form.data_type, form.data_type)
    halves = form.data_type == ir.DataType.FLOAT4E2M1
    if form.minima or not (halves or kind in _TAKEN):
        return _decoded(write, stored, transposed, form, (K, N))
    kind = ir.DataType.INT8 if halves else kind
    block = min(form.group or K, K)
    groups = (-(-K // block), N)
    scale_type = form.scale_type if form.scale_type == ir.DataType.FLOAT16 else ir.DataType.FLOAT
    data = table("data", kind, (K, N), _doubled if halves else _integers)
    scale = table("scale", scale_type, groups, _halved if halves else _same)
    if scale_type != ir.DataType.FLOAT:  # onnxruntime computes this once, and joins only scales of the result's type
        scale = write.add("Cast", scale, to=ir.DataType.FLOAT, label="scale")
    zeros = [table("zero_point", kind, groups, _integers)] if form.zero_points else []
    attributes = {"axis": 0, "block_size": block, "output_dtype": ir.DataType.FLOAT}
    weight = write.add("DequantizeLinear", data, scale, *zeros, label="decoded", **attributes)
    return weight if dtype == ir.DataType.FLOAT else write.add("Cast", weight, to=dtype, label="decoded")


def _decoded(
    write: Writer, stored: StoredWeight, transposed: bool, form: WeightFormat, shape: tuple[int, int]
) -> ir.Value:
    def load() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(decode(stored.encoded(0, transposed), form, 0).astype(np.float32)))

    write.remarks.append(f"its weight is stored as {form}, which onnxruntime does not decode: it is written as float32")
    return write.weight(ir.LazyTensor(load, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape)), "weight")


def _same(numbers: Array) -> Array:
    return numbers


def _integers(numbers: Array) -> Array:
    return numbers.astype(np.int16) if numbers.dtype.itemsize == 1 and numbers.dtype.kind not in "iu" else numbers


def _doubled(numbers: Array) -> Array:
    """Numbers of float4 e2m1 times 2, which are whole."""
    return numbers.astype(np.float32) * 2


def _halved(scales: Array) -> Array:
    return scales.astype(np.float32) / 2
