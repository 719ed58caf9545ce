"""The size of a language model's inputs that counts its sequences, where each is computed as if it were alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

import onnx_ir as ir

from moec.common.errors import InputError
from moec.common.specs import TensorSpec
from moec.ir import dialect
from moec.ir.dialect import RouteSpec
from moec.ir.weights.stored import constant
from moec.runtime.interface import Interface
from moec.runtime.roles import roles_of

_ALONG_AN_AXIS = {"ArgMax": 0, "ArgMin": 0, "CumSum": None, "Hardmax": -1, "LogSoftmax": -1, "Softmax": -1, "TopK": -1}
"""Operators that combine elements along one axis, with the default of the attribute; None where it is an input."""


def sequences_of(graph: ir.Model, interface: Interface) -> str | None:
    """Find the named size of the sequences of token ids [sequences, length].

    None for a model without token ids, for a fixed number of sequences, for inputs (except those that sessions fill)
    and outputs that do not have one part for each sequence, and for nodes that combine sequences: routers that look at
    all tokens together (``expert_choice``, ``capacity``), reductions, sorts and running sums along an axis of sequences
    or of their tokens."""
    try:
        roles = roles_of(interface)
    except InputError:
        return None
    count = roles.ids.shape[0]
    if not isinstance(count, str):
        return None
    others = [spec for spec in interface.inputs if spec.name not in roles.filled]
    is_split = all(count in spec.shape for spec in (*others, *interface.outputs))
    if not is_split or any(_counts_otherwise(spec, count) for spec in (*interface.inputs, *interface.outputs)):
        return None
    harmless = {name for spec in interface.inputs for size in spec.shape for name in _names(size)} - {count}
    return None if any(_combines(node, harmless) for node in graph.graph.all_nodes()) else count


def _counts_otherwise(spec: TensorSpec, count: str) -> bool:
    """Whether the number of sequences is a part of a size, or the size of several axes."""
    return spec.shape.count(count) > 1 or any(size != count and count in _names(size) for size in spec.shape)


def _names(size: object) -> set[str]:
    """List the names in a size, which is a number or an expression."""
    return set(re.findall(r"[^\W\d]\w*", str(size)))


def _combines(node: ir.Node, harmless: set[str]) -> bool:
    """Whether a node combines elements of several sequences: along axes whose sizes have names other than these."""
    if dialect.is_moec(node, "Route") or dialect.is_moec(node, "MoE"):
        spec = dialect.spec_of(node, RouteSpec)
        return spec.selection == "expert_choice" or bool(spec.capacity)
    axes = None if node.domain else _combined_axes(node)
    value = node.inputs[0] if node.inputs else None
    if axes is None or value is None:
        return False
    if value.shape is None:
        return True
    shape = value.shape
    return any(_names(shape[axis]) - harmless for axis in axes or range(len(shape)))


def _combined_axes(node: ir.Node) -> Sequence[int] | None:
    """Axes of its first input along which a node combines elements; empty for all axes, None for no axis."""
    if node.op_type.startswith("Reduce"):
        return _constant_axes(node) or list(node.attributes.get_ints("axes", []))
    if node.op_type not in _ALONG_AN_AXIS:
        return None
    default = _ALONG_AN_AXIS[node.op_type]
    return _constant_axes(node) if default is None else [node.attributes.get_int("axis", default)]


def _constant_axes(node: ir.Node) -> list[int]:
    value = node.inputs[1] if len(node.inputs) > 1 else None
    stored = None if value is None else constant(value)
    return [] if stored is None else [int(axis) for axis in stored.numpy().ravel()]
