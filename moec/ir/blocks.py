"""The MoE blocks of a model as plain data."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from moec.errors import UnsupportedError
from moec.ir.dialect import (
    FORMULATION_KEY,
    ORIGIN_KEY,
    DispatchSpec,
    ExpertsSpec,
    RouteSpec,
    attributes_of,
    has_experts,
    inputs_of,
    is_moec,
    spec_of,
)
from moec.ir.expert_ids import table_behind
from moec.ir.origins import origins_data, origins_of
from moec.ir.weights.format import ELEMENTS
from moec.ir.weights.stored import StoredWeight, weight_inputs

_NOT_ACTIVATION = (
    "activation",
    "gate_layout",
    "up_transposed",
    "down_transposed",
    "arithmetic",
    "activation_group",
    "hidden_sizes",
)


def moe_blocks(model: ir.Model) -> list[dict[str, Any]]:
    """One entry for each ``moec.MoE`` node and each ``moec.Experts`` node (with the ``moec.Route`` that feeds it, where
    one does), in the order of the graph.

    ``router`` and ``activation`` are for people: the function and whatever is not the default. ``routing`` and
    ``experts`` hold all attributes. ``formats`` says for each weight (up, down, gate) in which format every expert has
    it; a weight that is computed is missing. Sizes are None where the model does not fix them; router fields are None
    for experts whose routing is not a ``moec.Route``, ``formulation`` is None for blocks that were not raised, and
    ``origins`` (:mod:`moec.ir.origins`) for those that have the experts that they had at first.
    """
    return [_describe(node) for node in model.graph.all_nodes() if has_experts(node)]


def dispatched_blocks(model: ir.Model) -> list[dict[str, Any]]:
    """One entry for each ``moec.Dispatch`` node: its experts are a graph over dispatched rows. ``num_experts`` counts
    those that have rows; router fields are as in :func:`moe_blocks`."""
    return [
        {
            "name": node.name or node.outputs[0].name or "",
            "op": "moec.Dispatch",
            "num_experts": spec_of(node, DispatchSpec).expert_count,
            **_router_of(_route_behind(node.inputs[0]), node.inputs[0]),
            "formulation": "a graph over dispatched rows",
        }
        for node in model.graph.all_nodes()
        if is_moec(node, "Dispatch")
    ]


def _route_behind(ids: ir.Value | None) -> ir.Node | None:
    """What chooses the experts, where a table may stand between."""
    mapped = None if ids is None else table_behind(ids)
    return _producer(ids if mapped is None else mapped[0])


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
        "activation": _readable(spec.activation, spec, _NOT_ACTIVATION),
        "gate_layout": spec.gate_layout,
        "experts": dataclasses.asdict(spec),
        "has_bias": inputs["up_bias"] is not None or inputs["down_bias"] is not None,
        "dtype": _dtype(inputs["up"]),
        "formats": _formats(node),
        "formulation": node.metadata_props.get(FORMULATION_KEY),
        "origins": _origins(node, experts, spec),
    }


def expert_bits(blocks: Sequence[Mapping[str, Any]]) -> float | None:
    """Bits of a weight on average over all experts of :func:`moe_blocks`, without scales; None where nothing is known
    of any."""
    bits = weights = 0
    for block in blocks:
        joined = block["gate_layout"] not in ("none", "separate")
        for name, formats in block["formats"].items():
            sizes = block["experts"]["hidden_sizes"] or [block["intermediate_size"] or 0] * len(formats)
            for form, size in zip(formats, sizes, strict=True):
                own = (block["hidden_size"] or 0) * size * (2 if name == "up" and joined else 1)
                weights += own
                bits += own * ELEMENTS[form.partition("/")[0].rstrip("z")].bits
    return bits / weights if weights else None


def _origins(node: ir.Node, experts: int | None, spec: ExpertsSpec) -> dict[str, Any] | None:
    if ORIGIN_KEY not in node.metadata_props or experts is None:
        return None
    return origins_data(origins_of(node, experts + spec.identity_experts))


def _describe_router(node: ir.Node) -> dict[str, Any]:
    if is_moec(node, "MoE"):
        return _router_of(node, None)
    return _router_of(_producer(inputs_of(node)["weights"]), inputs_of(node)["experts"])


def _router_of(source: ir.Node | None, selected: ir.Value | None) -> dict[str, Any]:
    """The router fields of experts that ``source`` chooses, if it is one, as ids ``selected`` [T,k]."""
    if source is None or not (is_moec(source, "MoE") or is_moec(source, "Route")):
        return {"top_k": _size(selected, 1), "router": None, "routing": None, "has_correction_bias": None}
    spec = spec_of(source, RouteSpec)
    biased = inputs_of(source)["correction_bias"] is not None
    router = _readable(spec.score, spec, ("score", "k"))
    return {
        "top_k": spec.k,
        "router": f"{router}, correction bias" if biased else router,
        "routing": dataclasses.asdict(spec),
        "has_correction_bias": biased,
    }


def _readable(function: str, spec: RouteSpec | ExpertsSpec, elsewhere: tuple[str, ...]) -> str:
    """The function and every attribute that is not the default: ``sigmoid, normalize, scale 2.5``. ``elsewhere``: the
    attributes that are shown in fields of their own."""
    parts = [function]
    for name in attributes_of(spec):
        if name not in elsewhere:
            value, words = getattr(spec, name), name.replace("_", " ")
            parts.append(words if value is True else f"{words} {value}")
    return ", ".join(parts)


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


def _formats(node: ir.Node) -> dict[str, list[str]]:
    found = {}
    for name, value in weight_inputs(node).items():
        with contextlib.suppress(UnsupportedError):
            found[name] = [str(form) for form in StoredWeight.of(value).formats]
    return found


def _dtype(value: ir.Value | None) -> str | None:
    return value.dtype.numpy().name if value is not None and value.dtype is not None else None


def _producer(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None else None
