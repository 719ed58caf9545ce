"""How the graph says in which format a weight is stored: standard ONNX nodes, read and made here and nowhere else.

The weight operand of a moec node is one of

- a constant: stored as it is;
- ``Cast(constant)`` of float16 or bfloat16;
- ``DequantizeLinear <axis, block_size> (constant, scales[, zero points])``; ``axis`` is that of the inputs (``in`` of
  [E,out,in]), ``block_size`` the group. Elements and scales are those of :mod:`moec.ir.encodings`;
- ``Concat <axis = 0>`` of these: runs of consecutive experts, each with a format of its own.

:func:`decodes_weight` recognises these nodes, so that passes which compute constants leave them alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeGuard

import numpy as np
import onnx_ir as ir

from moec.errors import UnsupportedError
from moec.ir import dialect
from moec.ir.encodings import MX_GROUP, Encoded, FormatName, WeightFormat, decode, encode
from moec.ir.stacks import expert_data

__all__ = [
    "Encoded",
    "WeightFormat",
    "WeightRun",
    "decode",
    "decodes_weight",
    "decoding_node",
    "encode",
    "input_axis",
    "weight_inputs",
    "weight_runs",
]

Array = np.ndarray[Any, Any]

_WEIGHT_INPUTS = {
    "Experts": ("up", "down", "gate"),
    "MoE": ("up", "down", "gate"),
    "GroupedMatMul": ("weights",),
    "Linear": ("weight",),
}
_PLAIN = {
    ir.DataType.DOUBLE: WeightFormat("float64"),
    ir.DataType.FLOAT: WeightFormat("float32"),
    ir.DataType.FLOAT16: WeightFormat("float16"),
    ir.DataType.BFLOAT16: WeightFormat("bfloat16"),
}
_QUANTIZED: dict[ir.DataType, FormatName] = {
    ir.DataType.INT8: "int8",
    ir.DataType.UINT8: "int8",
    ir.DataType.INT4: "int4",
    ir.DataType.UINT4: "int4",
    ir.DataType.FLOAT4E2M1: "mxfp4",
}
_UNSIGNED = (ir.DataType.UINT8, ir.DataType.UINT4)


@dataclasses.dataclass(frozen=True)
class WeightRun:
    """Consecutive experts stored in one format. A matrix without experts (of ``Linear``) is a run of one expert.

    ``axis`` is that of the inputs in the matrix of one expert; None where the format has no groups and it is not said.
    """

    first: int
    count: int
    format: WeightFormat
    data: ir.Value
    scale: ir.Value | None = None
    zero_point: ir.Value | None = None
    axis: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """The matrix of one expert."""
        tensor = _constant(self.data)
        assert tensor is not None
        rows, columns = (int(size) for size in tensor.shape.numpy()[-2:])
        return rows, columns

    def encoded(self, expert: int) -> Encoded:
        """What is stored for one expert (its number among all experts), without reading any other."""
        parts = (self.data, self.scale, self.zero_point)
        return Encoded(*(None if part is None else self._part(part, expert) for part in parts))  # type: ignore[arg-type]

    def decoded(self, expert: int) -> Array:
        """The matrix of one expert in float32 (float64 where it is stored so)."""
        return decode(self.encoded(expert), self.format, -1 if self.axis is None else self.axis)

    def _part(self, value: ir.Value, expert: int) -> Array:
        tensor = _constant(value)
        assert tensor is not None
        return tensor.numpy() if len(tensor.shape) == 2 else expert_data(value, expert - self.first)


def weight_inputs(node: ir.Node) -> dict[str, ir.Value]:
    """The operands of a moec node that are weights of products, by name; empty for every other node."""
    if not dialect.is_moec(node):
        return {}
    inputs = dialect.inputs_of(node)
    return {name: value for name in _WEIGHT_INPUTS.get(node.op_type, ()) if (value := inputs[name]) is not None}


def input_axis(node: ir.Node, name: str) -> int:
    """The axis of the inputs in the weight operand ``name`` of a moec node, counted from the end (-1 or -2): it is the
    same in the matrix of one expert as in those of all."""
    if node.op_type == "GroupedMatMul":
        return -2
    if node.op_type == "Linear":
        transposed = dialect.spec_of(node, dialect.LinearSpec).transposed
    else:
        spec = dialect.spec_of(node, dialect.ExpertsSpec)
        transposed = spec.down_transposed if name == "down" else spec.up_transposed
    return -2 if transposed else -1


def decoding_node(
    form: WeightFormat,
    data: ir.Value,
    scale: ir.Value | None,
    zero_point: ir.Value | None,
    axis: int,
    dtype: ir.DataType,
) -> ir.Node:
    """The node that makes ``dtype`` of a weight stored in ``form``; ``axis`` is that of the inputs in ``data``."""
    if not form.quantized:
        node = ir.node("Cast", [data], {"to": int(dtype)})
    else:
        assert data.shape is not None
        operands = [data, scale] if zero_point is None else [data, scale, zero_point]
        size = int(data.shape.numpy()[axis])
        attributes = {"axis": axis % data.shape.rank(), "block_size": min(form.group or size, size)}
        node = ir.node("DequantizeLinear", operands, {**attributes, "output_dtype": int(dtype)})
    node.outputs[0].dtype, node.outputs[0].shape = dtype, data.shape
    return node


def decodes_weight(node: ir.Node | None) -> bool:
    """Whether the node stands between a stored weight and the moec node that multiplies by it."""
    if not _is(node, "Cast", "DequantizeLinear", "Concat"):
        return False
    return any(
        value in weight_inputs(user).values() or (_is(user, "Concat") and decodes_weight(user))
        for value in node.outputs
        for user, _ in value.uses()
    )


def weight_runs(value: ir.Value) -> list[WeightRun]:
    """How the weight operand ``value`` is stored, expert by expert.

    Raises UnsupportedError for an operand that is computed in any other way than the module says.
    """
    runs: list[WeightRun] = []
    for part in _parts(value):
        first = runs[-1].first + runs[-1].count if runs else 0
        runs.append(_run(part, first))
    return runs


def _is(node: ir.Node | None, *op_types: str) -> TypeGuard[ir.Node]:
    return node is not None and node.domain == "" and node.op_type in op_types


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The data of an initializer; an input with a default is none."""
    if value is None or value.is_graph_input():
        return None
    return ir.convenience.get_const_tensor(value)


def _parts(value: ir.Value) -> Iterator[ir.Value]:
    node = value.producer()
    if not _is(node, "Concat"):
        yield value
        return
    axis = node.attributes["axis"].as_int()
    if axis != 0:
        raise UnsupportedError(f"weight {value.name}: Concat joins axis {axis}; expected runs of experts along axis 0")
    for part in node.inputs:
        assert part is not None
        yield from _parts(part)


def _run(value: ir.Value, first: int) -> WeightRun:
    node = value.producer()
    if _is(node, "DequantizeLinear"):
        return _quantized_run(value, node, first)
    data = node.inputs[0] if _is(node, "Cast") else value
    tensor = _constant(data)
    if data is None or tensor is None:
        made = "an input of the model" if node is None else f"computed by {node.op_type}"
        raise UnsupportedError(
            f"weight {value.name}: is {made}; expected a constant, or a Cast, DequantizeLinear or Concat of constants"
        )
    if tensor.dtype not in _PLAIN:
        raise UnsupportedError(f"weight {value.name}: is {tensor.dtype}; expected a float or a quantised format")
    return WeightRun(first, _count(tensor), _PLAIN[tensor.dtype], data)


def _quantized_run(value: ir.Value, node: ir.Node, first: int) -> WeightRun:
    data, scale, zero_point = (*node.inputs, None)[:3]
    found, scales = _constant(data), _constant(scale)
    if data is None or found is None or scales is None or (zero_point is not None and _constant(zero_point) is None):
        raise UnsupportedError(f"weight {value.name}: DequantizeLinear has an operand that is not constant")
    rank = len(found.shape)
    axis, block = (node.attributes[key].as_int() if key in node.attributes else 0 for key in ("axis", "block_size"))
    axis += rank if axis < 0 else 0
    if rank not in (2, 3) or axis not in (rank - 1, rank - 2) or block <= 0 or len(scales.shape) != rank:
        raise UnsupportedError(
            f"weight {value.name}: {list(found.shape)} has scales {list(scales.shape)}, axis {axis} and block_size "
            f"{block}; expected blocks along the inputs of a matrix, or of one matrix per expert"
        )
    size = int(found.shape.numpy()[axis])
    form = _format(value, (found.dtype, scales.dtype), block, size, zero_point is not None)
    return WeightRun(first, _count(found), form, data, scale, zero_point, axis - (rank - 2))


def _format(
    value: ir.Value, types: tuple[ir.DataType, ir.DataType], block: int, size: int, has_zero_points: bool
) -> WeightFormat:
    data_type, scale_type = types
    name = _QUANTIZED.get(data_type)
    if name is None or (name == "mxfp4") != (scale_type == ir.DataType.FLOAT8E8M0):
        raise UnsupportedError(f"weight {value.name}: {data_type} elements with {scale_type} scales are not supported")
    if has_zero_points != (data_type in _UNSIGNED):
        found = "with" if has_zero_points else "without"
        raise UnsupportedError(
            f"weight {value.name}: {data_type} {found} zero points; expected signed elements without, or unsigned with"
        )
    if name != "mxfp4":
        return WeightFormat(name, 0 if block >= size else block, has_zero_points)
    if min(block, size) != min(MX_GROUP, size):
        raise UnsupportedError(f"weight {value.name}: mxfp4 in groups of {block}; expected {MX_GROUP}")
    return WeightFormat(name, MX_GROUP)


def _count(tensor: ir.TensorProtocol) -> int:
    return int(tensor.shape.numpy()[0]) if len(tensor.shape) == 3 else 1
