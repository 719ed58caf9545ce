"""Models as text and back: ``parse_model(print_model(m))`` is structurally equal to ``m``.

The syntax is that of ONNX's text format. Weights are shown as type, shape and hash; read back without ``weights`` they
are tensors that know these, but raise a clear error when their numbers are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from moec.common.errors import MoecError, one_line
from moec.ir.printer import print_model
from moec.ir.weight_hashes import PREFIX, HashedTensor, check_hash

__all__ = ["parse_model", "print_model"]


def parse_model(
    text: str, *, weights: Mapping[str, np.ndarray[Any, Any] | ir.TensorProtocol] | None = None
) -> ir.Model:
    """Read a model from text. ``weights`` gives the numbers of constants by the name of their value.

    Raises MoecError when the text cannot be read, when it refers to data by anything but a hash, and when a given
    weight has another type, shape or hash than the text says.
    """
    try:
        proto = onnx.parser.parse_model(text)
    except onnx.parser.ParseError as error:
        raise MoecError(f"the text of the model cannot be read: {_one_line(error)}") from None
    model = ir.from_proto(proto)
    arrays = weights or {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            value.const_value = _resolve(value.const_value, value.name, arrays)
        for node in graph:
            _resolve_attributes(node, arrays)
    return model


def _one_line(error: Exception) -> str:
    message = error.args[0]
    return " ".join((message.decode() if isinstance(message, bytes) else str(message)).split())


def _resolve_attributes(node: ir.Node, arrays: Mapping[str, Any]) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
            tensor = _resolve(attribute.as_tensor(), node.outputs[0].name, arrays)
            node.attributes[name] = ir.AttrTensor(name, tensor)


def _check_numbers(tensor: ir.TensorProtocol | None, name: str | None) -> None:
    """Raise MoecError where the text has more or fewer numbers than the shape asks for, which the parser lets pass."""
    try:
        if tensor is not None:
            tensor.numpy()
    except (ValueError, TypeError) as error:
        raise MoecError(
            f"the numbers of the constant {name!r} do not fit its type and shape: {one_line(error)}"
        ) from None


def _resolve(tensor: ir.TensorProtocol | None, name: str | None, arrays: Mapping[str, Any]) -> Any:
    """The tensor itself when its numbers were in the text, else the given numbers, else a HashedTensor."""
    if not isinstance(tensor, ir.ExternalTensor):
        _check_numbers(tensor, name)
        return tensor
    if not str(tensor.location).startswith(PREFIX):
        raise MoecError(f"weight {name} is said to be at {tensor.location!r}; text may refer to weights by hash only")
    hashed = HashedTensor(name, tensor.dtype, ir.Shape(tensor.shape), str(tensor.location).removeprefix(PREFIX))
    if name is None or name not in arrays:
        return hashed
    weight = arrays[name]
    actual = ir.tensor(weight, name=name) if isinstance(weight, np.ndarray) else weight
    check_hash(hashed, actual)
    return actual
