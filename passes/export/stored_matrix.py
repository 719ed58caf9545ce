"""A stored matrix as the second operand of MatMul, decoded once: when onnxruntime loads the model.

onnxruntime computes what depends on constants alone before the first run, except DequantizeLinear: it leaves that to
every run, or joins it with MatMul to a product that rounds rows to 8 bits. Weights are therefore decoded by Cast,
Gather, Sub and Mul; in the file they have the bits that they are stored in.
"""

from __future__ import annotations

from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir

from moec.ir.weights.encode import Table
from moec.ir.weights.stored import StoredWeight
from moec.passes.export.stored_table import Change, StoredTable
from moec.passes.graph.writer import Writer

Array = np.ndarray[Any, Any]
_WIDER = {ir.DataType.INT2: ir.DataType.INT4, ir.DataType.UINT2: ir.DataType.UINT4}
"""The types in which elements are written that ONNX has only in later opsets."""


def write_matrix(write: Writer, stored: StoredWeight, transposed: bool, dtype: ir.DataType) -> ir.Value:
    """Write the matrix [K,N] of a ``Linear`` in ``dtype``, from constants that are made when they are written to a
    file. ``transposed``: it is stored inputs first already."""
    run = stored.runs[0]
    form = run.format
    if transposed and not form.quantized:
        return run.data if form.data_type == dtype else write.add("Cast", run.data, to=dtype, label="decoded")
    matrix = _OneMatrix(write, stored, transposed)
    kind = ir.DataType.FLOAT if form.quantized else form.data_type
    weight = matrix.decoded() if form.quantized else matrix.table("data", kind)
    return weight if kind == dtype else write.add("Cast", weight, to=dtype, label="decoded")


class _OneMatrix:
    """The constants of a matrix, inputs first, and the nodes that decode it.

    One that is stored outputs first is turned when it is written to a file, unless something else uses it as it is.
    """

    def __init__(self, write: Writer, stored: StoredWeight, transposed: bool) -> None:
        self._write, self._stored, self._transposed = write, stored, transposed
        self._run, (self._outputs, self._inputs) = stored.runs[0], stored.out_in(transposed)
        self._is_shared = not transposed and len(self._run.data.uses()) > 1
        group = self._run.format.group or self._inputs
        self._groups = -(-self._inputs // group)
        self._of_inputs = write.constant(np.arange(self._inputs) // group, "groups") if self._groups > 1 else None

    def decoded(self) -> ir.Value:
        """The numbers [K,N] of a format with scales, in float32."""
        write, form = self._write, self._run.format
        kind = _WIDER.get(form.data_type, form.data_type)
        if kind == ir.DataType.FLOAT4E2M1:
            codes = write.add("Cast", self.table("data", ir.DataType.UINT4, _codes), to=ir.DataType.INT32)
            weight = write.add("Gather", write.constant(_code_values(), "values"), codes, axis=0, label="decoded")
        else:
            weight = self._wide(self.table("data", kind))
        if form.zero_points:
            weight = write.add("Sub", weight, self._spread(self._wide(self.table("zero_point", kind))), label="decoded")
        weight = write.add("Mul", weight, self._spread(self._scales("scale")), label="decoded")
        if form.minima:
            weight = write.add("Sub", weight, self._spread(self._scales("minimum")), label="decoded")
        return weight

    def table(self, name: Table, kind: ir.DataType, change: Change = lambda numbers: numbers) -> ir.Value:
        """A table [K,N] or [groups,N] in another type, its numbers after a ``change``."""
        levels = self._run.levels("minimum" if name.startswith("minimum") else "scale")
        size = self._inputs if name == "data" else self._groups
        if levels is not None and name.endswith("_factor"):
            size = -(-size // levels.span)
        shape = (self._outputs, size) if self._is_shared else (size, self._outputs)

        def load() -> ir.TensorProtocol:
            numbers = self._stored.encoded(0, self._transposed or self._is_shared).read(name)
            assert numbers is not None
            array = np.broadcast_to(change(numbers), shape).astype(kind.numpy())
            return ir.Tensor(np.ascontiguousarray(array), dtype=kind)

        lazy = ir.LazyTensor(load, dtype=kind, shape=ir.Shape(shape))
        value = self._write.weight(lazy, "weight" if name == "data" else f"weight.{name}")
        return self._write.add("Transpose", value, perm=[1, 0], label="turned") if self._is_shared else value

    def _scales(self, name: Literal["scale", "minimum"]) -> ir.Value:
        return StoredTable(self._write, self._run, name, self.table, self._groups, 0).decoded(self._write)

    def _wide(self, value: ir.Value) -> ir.Value:
        return self._write.add("Cast", value, to=ir.DataType.FLOAT, label="decoded")

    def _spread(self, table: ir.Value) -> ir.Value:
        """A number of each group for each of its inputs."""
        if self._of_inputs is None:
            return table
        return self._write.add("Gather", table, self._of_inputs, axis=0, label="decoded")


def _codes(numbers: Array) -> Array:
    return numbers.view(np.uint8)


def _code_values() -> Array:
    """The numbers of float4 e2m1 by their code."""
    return np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
