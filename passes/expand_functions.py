"""Operators that ONNX defines by others become those others."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import onnx
import onnx_ir as ir

from moec.common.names import node_name
from moec.ir.graphs import lift_constants
from moec.ir.opsets import NEWEST, later_attributes
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import fresh_name

EXPANDED = frozenset(
    {
        "AffineGrid",
        "BlackmanWindow",
        "CausalConvWithState",
        "Celu",
        "CenterCropPad",
        "DepthToSpace",
        "DynamicQuantizeLinear",
        "FlexAttention",
        "GroupNormalization",
        "HammingWindow",
        "HannWindow",
        "HardSwish",
        "LogSoftmax",
        "MeanVarianceNormalization",
        "Mish",
        "NegativeLogLikelihoodLoss",
        "Selu",
        "Shrink",
        "SoftmaxCrossEntropyLoss",
        "SpaceToDepth",
        "SwiGLU",
        "ThresholdedRelu",
    }
)
"""Operators without a kernel or converter of their own, on any target."""
_COMPUTED_OUTPUTS = {"Attention": 3, "LayerNormalization": 1}
"""Number of outputs that kernels compute, for operators that have more."""
_DOMAIN = "moec.expansion"


@dataclasses.dataclass(frozen=True)
class ExpandFunctions:
    """Replaces operators by the functions that define them in the ONNX standard.

    1. Operators that no target computes itself, such as LogSoftmax, become the nodes of their function body, which are
       expanded in turn.
    2. So do operators with outputs that no kernel computes (statistics of LayerNormalization, the products of
       Attention), or with attributes that came after the working opset.
    3. A node whose types are not known stays, if the body depends on them, and is reported.

    ::

        (float[T,4] x) => (float[T,4] y) {
           y = HardSwish (x)
        }
            infer-shapes,expand-functions ->
        (float[T,4] x) => (float[T,4] y) {
           HS_X = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x)
           y = Mul (x, HS_X)
        }
    """

    name: ClassVar[str] = "expand-functions"
    exactness: ClassVar[Exactness] = "reassociating"

    def apply(self, model: ir.Model, report: Report) -> bool:
        from onnx_ir.passes.common import InlinePass

        from moec.ir import shapes

        reported: set[ir.Node] = set()
        changed = False
        while True:
            functions = {}
            for node in [node for node in model.graph if _is_expanded(node) and node not in reported]:
                function = _function_of(node)
                if function is None:
                    report.warn(self.name, node_name(node), f"{node.op_type} stays: types of its inputs are not known")
                    reported.add(node)
                    continue
                functions[node] = function
            if not functions:
                return changed
            for number, (node, function) in enumerate(functions.items()):
                _call(model, node, function, str(number))
            InlinePass(criteria=lambda function: function.domain == _DOMAIN)(model)
            for identifier in [key for key in model.functions if key[0] == _DOMAIN]:
                del model.functions[identifier]
            model.graph.opset_imports.pop(_DOMAIN, None)
            lift_constants(model)
            shapes.infer(model)
            changed = True


def _is_expanded(node: ir.Node) -> bool:
    if node.domain != "":
        return False
    computed = _COMPUTED_OUTPUTS.get(node.op_type, len(node.outputs))
    further = any(output.uses() or output.is_graph_output() for output in node.outputs[computed:])
    later = node.op_type != "Range" and later_attributes(node)  # what Range got later is an allowance
    return node.op_type in EXPANDED or bool(later) or further


def _function_of(node: ir.Node) -> onnx.FunctionProto | None:
    """The newest body that the standard has for this node: an operator is defined for newer types than it has now, and
    by operators of which some are newer too."""
    schema: Any = onnx.defs.get_schema(node.op_type, NEWEST, "")  # what onnx declares of it lacks functions
    if schema.has_function:
        text = schema.get_function_with_opset_version(max(schema.function_opset_versions))
    else:
        if any(value is not None and value.type is None for value in node.inputs):
            return None
        assert isinstance(node.graph, ir.Graph)
        newest = max(schema.context_dependent_function_opset_versions)
        types = [_type_of(value).SerializeToString() for value in node.inputs]
        for position, output in enumerate(node.outputs):  # the body computes those that the node leaves out, too
            output.name = output.name or fresh_name(node.graph, f"{node_name(node)}.left_out_{position}")
        proto = ir.serde.serialize_node(node)
        text = schema.get_context_dependent_function_with_opset_version(newest, proto.SerializeToString(), types)
    return onnx.FunctionProto.FromString(text) if text else None


def _type_of(value: ir.Value | None) -> onnx.TypeProto:
    if value is None or value.type is None:
        return onnx.TypeProto()
    proto = ir.serde.serialize_type(value.type)
    if value.shape is not None:
        ir.serde.serialize_shape_into(proto, value.shape)
    return proto


def _call(model: ir.Model, node: ir.Node, function: onnx.FunctionProto, overload: str) -> None:
    """Make the node a call of the function, as a local one of the model."""
    schema = onnx.defs.get_schema(node.op_type, NEWEST, "")
    for name, declared in schema.attributes.items():
        if name not in node.attributes and declared.default_value.name:
            node.attributes.add(ir.serde.deserialize_attribute(declared.default_value))
    computed = {name for inner in function.node for name in inner.output}
    while function.output[-1] not in computed:  # an optional output that the node does not have
        del function.output[-1]
    function.domain, function.overload = _DOMAIN, overload
    for opset in function.opset_import:
        opset.version = model.graph.opset_imports.get(opset.domain, opset.version)
    node.domain, node.overload = _DOMAIN, overload
    model.graph.opset_imports[_DOMAIN] = 1
    local = ir.serde.deserialize_function(function)
    model.functions[local.identifier()] = local
