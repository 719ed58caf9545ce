"""Layers of experts as one node of onnxruntime: what ``com.microsoft.MoE`` and ``QMoE`` share.

Both have fc1 [E,2f,d], gate and up projection in turns, or [E,f,d] without a gate, and fc2 [E,d,f].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from moec.common.names import node_name
from moec.ir import dialect
from moec.ir.contrib import moe_attributes
from moec.ir.expert_weights import ExpertWeights, Part
from moec.ir.rule import known_size
from moec.passes.export.operator_check import why_different, why_unchecked
from moec.passes.export.routed_operator import routed, why_not_routed
from moec.passes.graph.edits import remove_unused, replace_node, value_names
from moec.passes.graph.writer import Writer

Array = np.ndarray[Any, Any]
Layer = Literal["fc1", "fc2"]
Operands = Callable[[Writer], Sequence["ir.Value | None"]]
Warn = Callable[[str], None]
LAYERS: tuple[Layer, ...] = ("fc1", "fc2")
_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def why_not_operator(node: ir.Node, weights: ExpertWeights) -> str | None:
    """Explain why neither operator computes the same as a ``moec.Experts`` node, whatever the formats of its weights;
    None where they do."""
    x, spec = dialect.inputs_of(node)["x"], weights.spec
    if x is None or x.dtype not in _TYPES:
        return f"its rows are {None if x is None else x.dtype}; the kernel takes float32 and float16"
    if known_size(dialect.inputs_of(node)["experts"], 1) is None:
        return "its number of experts per token is not known"
    if spec.output_limit:
        return "its outputs have a limit"
    try:
        moe_attributes(spec)
    except ValueError as error:
        return str(error)
    return why_not_routed(node, spec)


def replace_experts(
    node: ir.Node, op_type: str, weights: ExpertWeights, operands: Operands, warn: Warn, **attributes: Any
) -> str | None:
    """Put an operator in the place of a ``moec.Experts`` node. ``operands`` writes its weights; ``warn`` gets the
    reason where onnxruntime does not check it.

    Returns None; or the reason why the installed onnxruntime does not compute the same, and then the node stays.
    """
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    write = Writer(node, value_names(graph))
    inputs = routed(write, weights)
    slots = known_size(dialect.inputs_of(node)["experts"], 1)
    assert slots is not None, "why_not_operator asks for it"
    named = {"k": min(slots, weights.experts), "normalize_routing_weights": 1, **moe_attributes(weights.spec)}
    values = [inputs.x, inputs.logits, *operands(write)]
    operator = ir.node(op_type, values, {**named, **attributes}, domain="com.microsoft", name=node_name(node))
    old = node.outputs[0]
    y = write.insert(operator, "experts")
    y.type, y.shape = old.type, old.shape
    result, unchecked = inputs.completed(write, y), why_unchecked(weights)
    reason = why_different(operator, weights) if unchecked is None else None
    if unchecked is not None:
        warn(unchecked)
    if reason is not None:
        remove_unused(graph, result)
        return reason
    replaced = [value for value in node.inputs if value is not None]
    replace_node(node, [result])
    for value in dict.fromkeys(replaced):
        remove_unused(graph, value)
    return None


def parts_of(weights: ExpertWeights, layer: Layer) -> tuple[Part, ...]:
    return weights.before if layer == "fc1" else ("down",)


def in_turns(rows: Sequence[Array]) -> Array:
    """Rows [out,...] of the gate and of the up projection in turns; those of one projection alone as they are."""
    return rows[0] if len(rows) == 1 else np.stack(rows, axis=1).reshape(-1, *rows[0].shape[1:])


def bias_of(write: Writer, weights: ExpertWeights, layer: Layer, dtype: ir.DataType) -> ir.Value | None:
    """The bias [E,out] of a layer; None where there is none."""
    biases = [weights.bias(part) for part in parts_of(weights, layer)]
    if all(bias is None for bias in biases):
        return None
    sizes = max(weights.sizes) if layer == "fc1" else weights.width
    columns = [np.zeros((weights.experts, sizes)) if bias is None else np.asarray(bias)[:, :sizes] for bias in biases]
    turned = np.stack([in_turns(rows) for rows in zip(*columns, strict=True)])
    return write.weight(ir.tensor(turned.astype(dtype.numpy()), dtype=dtype), f"{layer}_bias")
