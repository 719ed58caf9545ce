"""The MoE blocks of a model as plain data."""

from __future__ import annotations

import dataclasses
from typing import Any

import onnx_ir as ir

from moec.ir.dialect import ExpertsSpec, RouteSpec, inputs_of, is_moec, spec_of


def moe_blocks(model: ir.Model) -> list[dict[str, Any]]:
    """One entry for each ``moec.MoE`` node and each ``moec.Experts`` node (with the ``moec.Route`` that feeds it, where
    one does), in the order of the graph.

    Sizes are None where the model does not fix them; router fields are None for experts whose routing is not a
    ``moec.Route``.
    """
    return [_describe(node) for node in model.graph.all_nodes() if is_moec(node, "MoE") or is_moec(node, "Experts")]


def _describe(node: ir.Node) -> dict[str, Any]:
    inputs, spec = inputs_of(node), spec_of(node, ExpertsSpec)
    experts, hidden_size, intermediate_size = _sizes(inputs, spec)
    return {
        "name": node.name or "",
        "op": f"moec.{node.op_type}",
        "num_experts": experts,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        **_describe_router(node),
        "activation": spec.activation,
        "experts": dataclasses.asdict(spec),
        "has_bias": inputs["up_bias"] is not None or inputs["down_bias"] is not None,
        "dtype": _dtype(inputs["up"]),
    }


def _describe_router(node: ir.Node) -> dict[str, Any]:
    source = node if is_moec(node, "MoE") else _producer(inputs_of(node)["weights"])
    if source is None or not (is_moec(source, "MoE") or is_moec(source, "Route")):
        selected = inputs_of(node)["experts"]
        return {"top_k": _size(selected, 1), "router": None, "routing": None, "has_correction_bias": None}
    spec = spec_of(source, RouteSpec)
    return {
        "top_k": spec.k,
        "router": spec.score,
        "routing": dataclasses.asdict(spec),
        "has_correction_bias": inputs_of(source)["correction_bias"] is not None,
    }


def _sizes(inputs: dict[str, ir.Value | None], spec: ExpertsSpec) -> tuple[int | None, int | None, int | None]:
    """(experts, hidden size, intermediate size) from the weights, which are [E, out, in] unless transposed."""
    up, down = inputs["up"], inputs["down"]
    hidden_axis, intermediate_axis = (2, 1) if spec.down_transposed else (1, 2)
    return _size(up, 0), _size(down, hidden_axis), _size(down, intermediate_axis)


def _size(value: ir.Value | None, axis: int) -> int | None:
    shape = value.shape if value is not None else None
    if shape is None or axis >= len(shape):
        return None
    size = shape[axis]
    return size if isinstance(size, int) else None


def _dtype(value: ir.Value | None) -> str | None:
    return value.dtype.numpy().name if value is not None and value.dtype is not None else None


def _producer(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None else None
