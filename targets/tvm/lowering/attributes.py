"""Reading a node's attributes and optional inputs."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from moec.common.errors import UnsupportedError


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """An attribute's value; tensors as ONNX IR tensors, lists as tuples."""
    value = node.attributes.get(name)
    return default if value is None else value.value


def optional_input(node: ir.Node, position: int) -> ir.Value | None:
    """An input, or None where it is absent or left empty."""
    if position >= len(node.inputs):
        return None
    value = node.inputs[position]
    return None if value is None or value.name == "" else value


def required_input(node: ir.Node, position: int) -> ir.Value:
    value = optional_input(node, position)
    if value is None:
        raise UnsupportedError(f"input {position} is missing; the operator requires it")
    return value


def steps(node: ir.Node, name: str, rank: int) -> list[int]:
    """``strides`` or ``dilations`` of ``rank`` spatial axes, 1 where absent. UnsupportedError if one is below 1."""
    listed = [int(step) for step in attribute(node, name, [1] * rank)]
    if len(listed) != rank or min(listed, default=1) < 1:
        raise UnsupportedError(f"{name} {listed} of {rank} spatial axes; expected one for each, 1 or more")
    return listed


def group_count(node: ir.Node, channels: int) -> int:
    """The attribute ``group`` of a convolution. Raises UnsupportedError if it does not divide ``channels``."""
    groups = int(attribute(node, "group", 1))
    if groups < 1 or channels % groups:
        raise UnsupportedError(f"{channels} channels in {groups} groups; expected groups of equal size")
    return groups


def normalized_axis(axis: int, rank: int) -> int:
    """An axis counted from the front. Raises UnsupportedError if it is out of range."""
    if not -rank <= axis < max(rank, 1):
        raise UnsupportedError(f"axis {axis} is out of range for rank {rank}; expected {-rank} to {rank - 1}")
    return axis % rank if rank else 0
