"""Experts in one node: ``com.microsoft.MoE``, and ``QMoE`` with weights of 4 or 8 bits.

Their router is a softmax over all experts and a top-k, renormalised on request; fc1, fc2 and fc3 are [E, out, in].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from moec.common.names import node_name
from moec.ir.contrib import experts_spec
from moec.ir.contrib_quantized import uses_int8_activations
from moec.ir.dialect import BLOCK_KEY, FORMULATION_KEY, ExpertsSpec, RouteSpec, make_node
from moec.passes.contrib.quantized import check_packed, expert_weights
from moec.passes.graph.writer import NotDecomposableError, Writer, as_float32, dtype_of

_ACTIVATION = ("activation_type", "swiglu_fusion", "activation_alpha", "activation_beta", "swiglu_limit")
_NAMES = {"fc1": "up", "fc2": "down", "fc3": "gate"}
_NAMES_OF_SEPARATE_GATE = {"fc1": "gate", "fc2": "down", "fc3": "up"}
_QUANTIZED = {"fc1": (2, 3, 4, 11), "fc2": (5, 6, 7, 12), "fc3": (8, 9, 10, 13)}
"""Positions of the inputs of QMoE: packed weights, scales, bias, zero points."""
Weights = dict[str, ir.Value]


def moe(write: Writer) -> list[ir.Value | None]:
    names = ("fc1", "fc1_bias", "fc2", "fc2_bias", "fc3", "fc3_bias")
    inputs = {name: write.input(position) for position, name in enumerate(names, start=2)}
    weights = {name: value for name, value in inputs.items() if value is not None}
    route = RouteSpec(k=write.attribute("k", 1), normalize=bool(write.attribute("normalize_routing_weights", 0)))
    spec = _experts_spec(write, weights)
    x, logits = write.required(0, "input"), write.required(1, "router_probs")
    return [_block(write, x, _softmax_route(write, logits, _sizes(weights)[1], route), spec, weights)]


def qmoe(write: Writer) -> list[ir.Value | None]:
    """Weights that are the softmax of the router's logits are always normalised: onnxruntime's CPU kernel then ignores
    ``normalize_routing_weights``. With router_weights the logits only choose.
    """
    write.refuse_attributes(quant_type="int")
    if write.attribute("weights_prepacked", -1) == 1:
        raise NotDecomposableError("attribute weights_prepacked is 1, weights in an order of a GPU's; expected 0 or -1")
    write.refuse_inputs(fc1_global_scale=15, fc2_global_scale=16, fc1_act_scale=17)
    bits, block_size = write.attribute("expert_weight_bits", 4), write.attribute("block_size", 0)
    write.refuse_attributes(fc1_expert_weight_bits=bits, fc2_expert_weight_bits=bits, fc3_expert_weight_bits=bits)
    positions = {name: at for name, at in _QUANTIZED.items() if write.input(at[0]) is not None}
    for name, at in positions.items():
        check_packed(write.required(at[0], name), bits, 3)
    spec = _experts_spec(write, positions)
    if uses_int8_activations(bits, block_size, write.attribute("accuracy_level", 0)):
        spec = dataclasses.replace(spec, arithmetic="int8", activation_group=block_size)
    x, logits = write.required(0, "input"), write.required(1, "router_probs")
    dtype = dtype_of(x, "input")
    weights: Weights = {}
    for name, (data, scales, bias, zeros) in positions.items():
        packed, scale = write.required(data, name), write.required(scales, f"{name}_scales")
        weights[name] = expert_weights(write, packed, scale, write.input(zeros), bits, name)
        if (present := write.input(bias)) is not None:
            weights[f"{name}_bias"] = as_float32(write, present)
    E = _sizes(weights)[1]
    if write.input(14) is None:
        route = RouteSpec(k=write.attribute("k", 1), normalize=True)
        routing = _softmax_route(write, as_float32(write, logits), E, route)
    else:
        routing = _separate_route(write, logits, write.required(14, "router_weights"), E)
    y = _block(write, as_float32(write, x), routing, spec, weights)
    return [y if dtype == ir.DataType.FLOAT else write.add("Cast", y, to=dtype)]


def _experts_spec(write: Writer, weights: Collection[str]) -> ExpertsSpec:
    write.refuse_attributes(use_sparse_mixer=0, swiglu_limit_after_activation=0)
    options = {name: write.attribute(name, None) for name in _ACTIVATION}
    try:
        return experts_spec("fc3" in weights, **{name: value for name, value in options.items() if value is not None})
    except ValueError as error:
        raise NotDecomposableError(str(error)) from error


Routing = tuple[ir.Value, ir.Value]
"""The weights [T,k] in float32 and ids [T,k] in int32 of the experts of each token."""


def _softmax_route(write: Writer, logits: ir.Value, E: int, spec: RouteSpec) -> Routing:
    name = f"{node_name(write.node)}.route"
    route = make_node("Route", {"logits": _rows(write, logits, E)}, spec, name=name)
    route.metadata_props[BLOCK_KEY] = node_name(write.node)
    return write.insert(route, "weights", "experts"), route.outputs[1]


def _separate_route(write: Writer, scores: ir.Value, weights: ir.Value, E: int) -> Routing:
    """The k experts of the largest scores, with weights of their own, of which those up to 1e-8 count as zero."""
    k = write.numbers(write.attribute("k", 1))
    top = ir.node("TopK", [_rows(write, scores, E), k], num_outputs=2)
    write.insert(top, "scores", "ids")
    ids = top.outputs[1]
    chosen = write.add("GatherElements", _rows(write, as_float32(write, weights), E), ids, axis=1)
    zero, least = (write.constant(np.array(number, np.float32), "number") for number in (0, 1e-8))
    if write.attribute("normalize_routing_weights", 0):
        total = write.add("ReduceSum", chosen, write.numbers(1), keepdims=1)
        share = write.add("Div", chosen, total)
        chosen = write.add("Where", write.add("Equal", total, zero), zero, share)
    chosen = write.add("Where", write.add("Greater", chosen, least), chosen, zero, label="weights")
    return chosen, write.add("Cast", ids, to=ir.DataType.INT32, label="experts")


def _block(write: Writer, x: ir.Value, routing: Routing, spec: ExpertsSpec, weights: Weights) -> ir.Value:
    """Experts on one row per token; the result has the shape of x."""
    d, _ = _sizes(weights)
    name = node_name(write.node)
    rows = _rows(write, x, d)
    names = _NAMES_OF_SEPARATE_GATE if spec.gate_layout == "separate" else _NAMES
    operands = {key.replace(fc, own): weights.get(key) for fc, own in names.items() for key in (fc, f"{fc}_bias")}
    inputs = {"x": rows, "weights": routing[0], "experts": routing[1], **operands}
    experts = make_node("Experts", inputs, spec, name=f"{name}.experts")
    experts.metadata_props[FORMULATION_KEY] = f"com.microsoft.{write.node.op_type}"
    experts.metadata_props[BLOCK_KEY] = name
    y = write.insert(experts, "y")
    return y if rows is x else write.add("Reshape", y, write.add("Shape", x), allowzero=1, label="restored")


def _rows(write: Writer, value: ir.Value, width: int) -> ir.Value:
    """The value as a matrix with one row per token."""
    if value.shape is not None and len(value.shape) == 2:
        return value
    return write.add("Reshape", value, write.numbers(-1, width), label="rows")


def _sizes(weights: Weights) -> tuple[int, int]:
    """Hidden size and number of experts, from the weights fc2 [E,d,f]."""
    if not {"fc1", "fc2"} <= set(weights):
        raise NotDecomposableError("input fc1 or fc2 is missing")
    shape = weights["fc2"].shape
    if shape is None or len(shape) != 3 or not shape.is_static():
        raise NotDecomposableError("the shape of fc2 is not known; expected numbers")
    E, d, _ = shape.numpy()
    return d, E
