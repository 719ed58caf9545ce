"""Constants and element types of ONNX values."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError


def constant_of(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor of an initializer or a Constant node; None for a value computed at run time."""
    if value.const_value is not None and not value.is_graph_input():
        return value.const_value
    producer = value.producer()
    if producer is None or producer.op_type != "Constant" or producer.domain not in ("", "ai.onnx"):
        return None
    (attribute,) = producer.attributes.values()
    if isinstance(attribute.value, ir.TensorProtocol):
        return attribute.value
    data = np.asarray(attribute.value, np.float32 if "float" in attribute.name else np.int64)
    return ir.tensor(data)


def dtype_of(value: ir.Value) -> str:
    """The element type of an ONNX value by Relax's name."""
    constant = constant_of(value)
    data_type = value.dtype if constant is None else constant.dtype
    if data_type is None:
        raise UnsupportedError(f"value {value.name!r} has no element type; run shape inference before compiling")
    return dtype_name(data_type)


def dtype_name(data_type: ir.DataType) -> str:
    """Raises UnsupportedError for strings, complex numbers and other types without a machine representation here."""
    name = data_type.numpy().name if data_type != ir.DataType.STRING else "string"
    if not re.fullmatch(r"bool|u?int(8|16|32|64)|float(16|32|64)|bfloat16", name):
        raise UnsupportedError(
            f"element type {data_type.name} is not supported; expected bool, an integer or a float type"
        )
    return name
