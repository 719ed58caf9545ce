"""The MoE blocks of a model as plain data."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.names import node_name
from moec.ir.dialect import (
    BLOCK_KEY,
    FORMULATION_KEY,
    ORIGIN_KEY,
    DispatchSpec,
    ExpertsSpec,
    ProductSpec,
    RouteSpec,
    attributes_of,
    has_experts,
    inputs_of,
    is_moec,
    spec_of,
)
from moec.ir.exchanged_rows import exchanged_bytes
from moec.ir.expert_ids import selected_ids, table_behind
from moec.ir.origins import Origins, origins_data, origins_of
from moec.ir.weight_operands import weight_inputs
from moec.ir.weights.format import ELEMENTS
from moec.ir.weights.stored import StoredWeight

_NOT_ACTIVATION = (
    "activation",
    "gate_layout",
    "up_transposed",
    "down_transposed",
    "arithmetic",
    "activation_group",
    "hidden_sizes",
)
_WITHOUT_ROWS = "no matrix is its own: it returns zeros, a vector or a multiple of its token"


def moe_blocks(model: ir.Model) -> list[dict[str, Any]]:
    """One entry for each ``moec.MoE`` node, each ``moec.Experts`` node (with the ``moec.Route`` that feeds it, where
    one does), and each ``moec.Dispatch`` node, whose experts are a graph over dispatched rows, in the graph's order.

    ``router`` and ``activation`` are for people: the function and whatever is not the default. ``routing`` and
    ``experts`` hold all attributes. ``formats`` says for each weight (up, down, gate) in which format every expert has
    it; a weight that is computed is missing. Sizes are None where the model does not fix them; router fields are None
    for experts whose routing is not a ``moec.Route``, ``formulation`` and ``block``, the name of the block in
    remarks and evidence, are None for blocks that were not raised, and
    ``origins`` (:mod:`moec.ir.origins`) for those that have the experts that they had at first. ``row_bytes``: of a row
    on its way ``out`` to another rank and of a result on its way ``back`` (:mod:`moec.ir.exchanged_rows`), whether the
    model has ranks or not.

    Of a graph over dispatched rows, ``num_experts`` counts the experts that have rows, ``products`` are its products
    by matrices of their own, with numbers of inputs and outputs, and ``formats`` has these products in the place of
    weights; ``experts``, ``activation``, ``gate_layout``, ``row_bytes`` and the sizes of the layer are None.
    """
    products: dict[ir.Value | None, list[ir.Node]] = {}
    nodes = list(model.graph.all_nodes())
    for node in nodes:
        if is_moec(node, "GroupedMatMul"):
            products.setdefault(inputs_of(node)["offsets"], []).append(node)
    return [
        _describe(node) if has_experts(node) else _describe_dispatched(node, products.get(node.outputs[0], []))
        for node in nodes
        if has_experts(node) or is_moec(node, "Dispatch")
    ]


def _describe_dispatched(node: ir.Node, products: Sequence[ir.Node]) -> dict[str, Any]:
    ids = node.inputs[0]
    table = None if ids is None else table_behind(ids)
    count, weights = spec_of(node, DispatchSpec).expert_count, [inputs_of(product)["weights"] for product in products]
    return {
        "name": node_name(node),
        "op": "moec.Dispatch",
        "num_experts": count,
        "hidden_size": None,
        "intermediate_size": None,
        **_router_of(_producer(ids if table is None else table[0]), ids),
        "activation": None,
        "gate_layout": None,
        "experts": None,
        "row_bytes": None,
        "has_bias": any(inputs_of(product)["bias"] is not None for product in products),
        "dtype": _dtype(weights[0]) if weights else None,
        "formats": {node_name(product): own["weights"] for product in products if (own := _formats(product))},
        "formulation": "a graph over dispatched rows",
        "block": node.metadata_props.get(BLOCK_KEY),
        "origins": None if table is None else origins_data(_origins_by_table(table[1], count)),
        "products": [
            {"name": node_name(product), "inputs": _size(weight, 1), "outputs": _size(weight, 2)}
            | dataclasses.asdict(spec_of(product, ProductSpec))
            for product, weight in zip(products, weights, strict=True)
        ],
    }


def _origins_by_table(table: Sequence[int], count: int) -> Origins:
    """Origins of the experts behind a table that maps the router's ids to ids of experts."""
    groups = tuple(tuple(expert for expert, row in enumerate(table) if row == place) for place in range(count))
    return Origins(groups, {expert: _WITHOUT_ROWS for expert, row in enumerate(table) if row < 0})


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
        "row_bytes": _row_bytes(node),
        "has_bias": inputs["up_bias"] is not None or inputs["down_bias"] is not None,
        "dtype": _dtype(inputs["up"]),
        "formats": _formats(node),
        "formulation": node.metadata_props.get(FORMULATION_KEY),
        "block": node.metadata_props.get(BLOCK_KEY),
        "origins": _origins(node, experts, spec),
    }


def _row_bytes(node: ir.Node) -> dict[str, int] | None:
    exchanged = exchanged_bytes(node)
    return None if exchanged is None else dict(zip(("out", "back"), exchanged, strict=True))


def expert_bits(blocks: Sequence[Mapping[str, Any]]) -> float | None:
    """Bits of a weight on average over all experts of :func:`moe_blocks`, without scales; None where nothing is known
    of any."""
    bits = weights = 0
    for block in blocks:
        for name, formats in block["formats"].items():
            for form, own in zip(formats, elements_of(block, name), strict=True):
                weights += own
                bits += own * ELEMENTS[form.partition("/")[0].rstrip("z")].bits
    return bits / weights if weights else None


def elements_of(block: Mapping[str, Any], name: str) -> list[int]:
    """Numbers of elements of the weight ``name``, one for each expert; 0 where a size is not known."""
    count = len(block["formats"][name])
    for product in block.get("products", ()):
        if product["name"] == name:
            return [(product["inputs"] or 0) * (product["outputs"] or 0)] * count
    sizes = block["experts"]["hidden_sizes"] or [block["intermediate_size"] or 0] * count
    halves = 2 if name == "up" and block["gate_layout"] not in ("none", "separate") else 1
    return [(block["hidden_size"] or 0) * size * halves for size in sizes]


def _origins(node: ir.Node, experts: int | None, spec: ExpertsSpec) -> dict[str, Any] | None:
    if ORIGIN_KEY not in node.metadata_props or experts is None:
        return None
    return origins_data(origins_of(node, experts + spec.identity_experts))


def _describe_router(node: ir.Node) -> dict[str, Any]:
    if is_moec(node, "MoE"):
        return _router_of(node, None)
    source, ids = _producer(inputs_of(node)["weights"]), selected_ids(node)
    if source is not None and is_moec(source, "ReceiveRows"):
        table = None if ids is None else table_behind(ids)
        source = _producer(ids if table is None else table[0])
    return _router_of(source, ids)


def _router_of(source: ir.Node | None, selected: ir.Value | None) -> dict[str, Any]:
    """Router fields of experts that ``source`` selects as ids ``selected`` [T,k]; None if it is not a router."""
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
    formats = {}
    for name, value in weight_inputs(node).items():
        with contextlib.suppress(UnsupportedError):
            formats[name] = [str(form) for form in StoredWeight.of(value).formats]
    return formats


def _dtype(value: ir.Value | None) -> str | None:
    return value.dtype.numpy().name if value is not None and value.dtype is not None else None


def _producer(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None else None
