"""Rows of the embedding table by token ids. A quantised table stays quantised: only the selected rows are decoded."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir

from moec.frontend.gguf.file import formats
from moec.frontend.gguf.file.formats import Quantised
from moec.frontend.gguf.file.reader import GgufTensor
from moec.frontend.gguf.graph.builder import FLOAT, Builder
from moec.ir.weights.encode import codes_of
from moec.ir.weights.levels import LEVELS

_NAME = "token_embd.weight"


def embed(build: Builder, scale: float = 1.0, name: str = _NAME, width: int = 0) -> ir.Value:
    """Look up the rows [B,S,width] of ``input_ids`` in float32, times ``scale``, in the table ``name`` of rows of
    ``width`` numbers (D by default)."""
    write = build.write
    tensor = build.tensor(name, build.vocabulary, width or build.width)
    if tensor.kind in formats.FLOATS:
        rows = write.op("Gather", build.table(name, tensor, "data"), build.ids, axis=0, label="embedding")
        rows = rows if tensor.kind == "F32" else write.op("Cast", rows, to=int(FLOAT), label="embedding.float")
    else:
        rows = _decoded(build, name, tensor, formats.QUANTISED[tensor.kind])
    return write.scaled(rows, scale, "embedding.scaled")


def _decoded(build: Builder, name: str, tensor: GgufTensor, kind: Quantised) -> ir.Value:
    if not kind.form.elements.whole:
        return build.write.op("Gather", build.float_table(name, *tensor.shape), build.ids, axis=0)
    write, form = build.write, kind.form
    numbers = write.reshape(_numbers(build, name, tensor, kind), 0, 0, tensor.shape[1] // form.group, form.group)
    value = write.op("Mul", numbers, _of_groups(build, name, tensor, "scale"))
    if form.minima:
        value = write.op("Sub", value, _of_groups(build, name, tensor, "minimum"))
    return write.reshape(value, 0, 0, tensor.shape[1], label="embedding")


def _numbers(build: Builder, name: str, tensor: GgufTensor, kind: Quantised) -> ir.Value:
    """Look up the numbers [B,S,D] in float32."""
    write, elements = build.write, kind.form.elements
    if elements.bits > 4:
        return write.op("Cast", _bytes(build, name, tensor), to=int(FLOAT))
    halves = _halves(build, name, tensor, kind)
    if elements.numbers:
        table = write.constant(np.array(elements.numbers, np.float32), "iq4_numbers")
        return write.op("Gather", table, write.op("Cast", halves, to=int(ir.DataType.INT32)), axis=0)
    numbers = write.op("Cast", halves, to=int(FLOAT))
    return numbers if kind.form.minima else write.op("Sub", numbers, write.scalar(8.0))


def _bytes(build: Builder, name: str, tensor: GgufTensor) -> ir.Value:
    """Look up the stored numbers [B,S,D] of a format of 8 bits."""
    return build.write.op("Gather", build.table(name, tensor, "data"), build.ids, axis=0, label="embedding.numbers")


def _halves(build: Builder, name: str, tensor: GgufTensor, kind: Quantised) -> ir.Value:
    """Look up the stored numbers [B,S,D] of a format of at most 4 bits, signed ones plus 8, or their places in a table.

    Programs have no elements of less than a byte, so two numbers share one, the first in the lower bits: the bytes are
    those of the elements of 4 bits that products take.
    """
    write, half = build.write, tensor.shape[1] // 2
    data = formats.weight_of(tensor).data

    def load() -> ir.TensorProtocol:
        form, numbers = kind.form, data.read()
        if form.elements.numbers:
            numbers = codes_of(numbers, form.name)
        else:
            numbers = numbers.astype(np.int8) + (0 if form.minima else 8)
        return ir.tensor((numbers[:, 0::2] | (numbers[:, 1::2] << 4)).view(np.uint8))

    packed = ir.LazyTensor(load, ir.DataType.UINT8, ir.Shape((build.vocabulary, half)))
    rows = write.op("Gather", write.weight(packed, f"{name}.rows"), build.ids, axis=0, label="embedding.bytes")
    low = write.op("BitwiseAnd", rows, write.constant(np.array(15, np.uint8), "low_bits"))
    high = write.op("BitShift", rows, write.constant(np.array(4, np.uint8), "four"), direction="RIGHT")
    low, high = (write.op("Unsqueeze", part, write.numbers(-1)) for part in (low, high))
    return write.op("Concat", low, high, axis=-1, label="embedding.numbers")


def _of_groups(build: Builder, name: str, tensor: GgufTensor, table: Literal["scale", "minimum"]) -> ir.Value:
    """Look up scales or minima of the selected rows, [B,S,groups,1] in float32."""
    write, form = build.write, formats.QUANTISED[tensor.kind].form
    if not form.super_group:
        return write.op("Unsqueeze", _picked(build, name, tensor, table), write.numbers(-1))
    spans = tensor.shape[1] // form.super_group, form.super_group // form.group
    codes, factors = (_picked(build, name, tensor, level) for level in LEVELS[table])
    codes, factors = write.reshape(codes, 0, 0, *spans), write.op("Unsqueeze", factors, write.numbers(-1))
    return write.reshape(write.op("Mul", codes, factors), 0, 0, tensor.shape[1] // form.group, 1)


def _picked(build: Builder, name: str, tensor: GgufTensor, table: formats.Table) -> ir.Value:
    """Look up the selected rows of a table in float32."""
    stored = build.table(name, tensor, table)
    rows = build.write.op("Gather", stored, build.ids, axis=0)
    return rows if stored.dtype == FLOAT else build.write.op("Cast", rows, to=int(FLOAT))
