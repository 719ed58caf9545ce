"""Functions in ONNX operators that compute what nodes of the moec dialect do.

A function has the name and the inputs of its operator, and all attributes of the nodes that call it. Its body is that
of these attributes; sizes of weights and numbers of tokens are not written down in it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from moec.ir import dialect
from moec.ir.dialect import DispatchSpec, LinearSpec
from moec.ir.opsets import OPSET
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.passes.graph.writer import NotDecomposableError

_PASSES = (
    "infer-shapes,accumulate-experts,expand-route,expand-dispatch,expand-rounding,expand-linear,"
    "eliminate-common-subexpressions,remove-dead-nodes"
)
_MEANINGS = {
    "Route": "Selects k weighted experts per token by the logits.",
    "Experts": "Adds up the outputs of each token's experts, times their weights.",
    "MoE": "Selects k weighted experts per token by the logits, and adds up their outputs, times their weights.",
    "Dispatch": "Tells the pair of token and slot that each row belongs to, with rows sorted by their expert.",
    "GroupedMatMul": "Multiplies the rows of each expert, from offsets[e] to offsets[e + 1], with its matrix.",
    "Combine": "Adds up the rows of each token, times their weights.",
    "Linear": "Multiplies rows, rounded as the arithmetic says, with a matrix.",
    "RoundRows": "Rounds each row to integers from -127 to 127 times a scale in bfloat16.",
}
"""The operators that functions are written for, and the first sentences of their documentation."""
_KNOWN_SIZES = {"Route": ("logits", 1), "MoE": ("logits", 1), "Dispatch": ("experts", 1)}
"""An axis of an input whose size is in the body: the number of experts, of experts per token."""

Signature = tuple[Any, ...]


def has_function(node: ir.Node) -> bool:
    """Whether functions are written for the node's operator: ONNX has products that do not round."""
    if not dialect.is_moec(node) or node.op_type not in _MEANINGS:
        return False
    return node.op_type != "Linear" or dialect.spec_of(node, LinearSpec).arithmetic != LinearSpec.arithmetic


def calls_function(model: ir.Model, node: ir.Node) -> bool:
    """Whether the node calls one of the model's functions."""
    return has_function(node) and node.op_identifier() in model.functions


def signature(node: ir.Node) -> Signature:
    """Everything that a body depends on: equal signatures have equal bodies."""
    attributes = sorted((name, str(attribute.value)) for name, attribute in node.attributes.items())
    inputs = tuple(
        None if value is None else (value.dtype, None if value.shape is None else len(value.shape))
        for value in node.inputs
    )
    return node.op_type, tuple(attributes), inputs, _known_size(node)


def expert_count(node: ir.Node) -> int:
    """The number of experts that a body has constants for; 0 where it has none."""
    if node.op_type == "Dispatch":
        return dialect.spec_of(node, DispatchSpec).expert_count
    return _known_size(node) or 0


def function_of(node: ir.Node, overload: str = "") -> ir.Function:
    """The function that a node calls, at the working opset. Raises NotDecomposableError, with the reason, for a node
    whose body ONNX cannot spell."""
    graph = _graph_of(node)
    model, report = ir.Model(graph, ir_version=10), Report()
    pipeline.run(model, pipeline.parse(_PASSES), report)
    left = [inner for inner in graph if inner.domain]
    if left:
        raise NotDecomposableError(report.remarks[-1].message if report.remarks else f"{left[0].op_type} stays")
    _write_constants(graph)
    for inner in ir.traversal.RecursiveGraphIterator(graph):
        inner.name = inner.outputs[0].name  # onnxruntime refuses two nodes of one name
        for value in inner.outputs:
            value.shape = None
            if not value.is_graph_output():
                value.type = None
    graph.opset_imports.clear()
    graph.opset_imports[""] = OPSET
    attributes = _attributes(node)
    function = ir.Function(dialect.DOMAIN, node.op_type, overload, graph=graph, attributes=attributes)
    with_values = ", ".join(f"{attribute.name} = {attribute.value}" for attribute in attributes)
    function.doc_string = f"{_MEANINGS[node.op_type]} {with_values}".strip()
    return function


def same_body(actual: ir.Function, expected: ir.Function) -> bool:
    """Whether two functions have the same inputs, outputs and nodes."""
    return _content(actual) == _content(expected)


def _content(function: ir.Function) -> bytes:
    proto = ir.serde.serialize_function(function)
    content = onnx.FunctionProto(input=proto.input, output=proto.output, node=proto.node)
    return content.SerializeToString(deterministic=True)


def _attributes(node: ir.Node) -> list[ir.Attr]:
    """All attributes that the operator has a value for, the defaults included."""
    values: dict[str, Any] = {}
    for kind in dialect.SPECS[node.op_type]:
        spec = dialect.spec_of(node, kind)
        values |= {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    plain = {name: int(value) if isinstance(value, bool) else value for name, value in values.items()}
    return list(ir.convenience.convert_attributes({name: v for name, v in plain.items() if v not in (None, ())}))


def _known_size(node: ir.Node) -> int | None:
    if node.op_type not in _KNOWN_SIZES:
        return None
    name, axis = _KNOWN_SIZES[node.op_type]
    value = dialect.inputs_of(node)[name]
    size = None if value is None or value.shape is None else value.shape[axis]
    return size if isinstance(size, int) else None


def _graph_of(node: ir.Node) -> ir.Graph:
    """A graph of this node alone, whose inputs have the names of the operator's."""
    names = dialect.INPUTS[node.op_type]
    inputs = [_input(node, name, value) for name, value in zip(names, node.inputs, strict=False)]
    operands = [own if value is not None else None for own, value in zip(inputs, node.inputs, strict=True)]
    own = ir.node(
        node.op_type, operands, node.attributes, domain=node.domain, num_outputs=len(node.outputs), name=node.op_type
    )
    for value, name in zip(own.outputs, dialect.OUTPUTS[node.op_type], strict=True):
        value.name = name
    imports = {"": OPSET, dialect.DOMAIN: 1}
    return ir.Graph(inputs, own.outputs, nodes=[own], opset_imports=imports, name=node.op_type)


def _input(node: ir.Node, name: str, value: ir.Value | None) -> ir.Value:
    if value is None:
        return ir.Value(name=name)
    if value.dtype is None or value.shape is None:
        raise NotDecomposableError(f"the type of its input {name} is not known")
    sizes: list[int | str] = [f"{name}_{axis}" for axis in range(len(value.shape))]
    sized_input, axis = _KNOWN_SIZES.get(node.op_type, ("", 0))
    if name == sized_input and (size := _known_size(node)) is not None:
        sizes[axis] = size
    return ir.Value(name=name, type=ir.TensorType(value.dtype), shape=ir.Shape(sizes))


def _write_constants(graph: ir.Graph) -> None:
    """Make nodes of the initializers, which functions do not have."""
    first = graph[0]
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        assert tensor is not None
        constant = ir.node(
            "Constant", [], {"value": ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype)}, name=name
        )
        graph.insert_before(first, constant)
        ir.convenience.replace_all_uses_with(value, constant.outputs[0])
        del graph.initializers[name]
        constant.outputs[0].name = name
