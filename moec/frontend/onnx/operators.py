"""Checks of a model's operators, attributes and types, for things that no part of moec supports.

Targets decide for themselves about the operators that they can compile.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx.defs
import onnx_ir as ir

from moec.common.errors import MoecError, UnsupportedError
from moec.common.names import node_name
from moec.frontend.onnx import opset
from moec.ir import dialect
from moec.ir.local_bodies import Bodies
from moec.ir.opsets import OPSET
from moec.ir.printer import check_attributes
from moec.ir.verifier import dialect_violations
from moec.ir.weights.stored import WIDTH

CONTRIB_DOMAIN = "com.microsoft"
LARGEST_SIZE = 2**31 - 1
_FLAGS = frozenset(
    {
        *("align_corners", "allowzero", "antialias", "ceil_mode", "center_point_box", "count_include_pad"),
        *("detect_negative", "detect_positive", "exclude_outside", "exclusive", "fmod", "input_forget"),
        *("interleaved", "inverse", "is_causal", "keepdims", "largest", "layout", "linear_before_reset"),
        *("noop_with_empty_axes", "onesided", "periodic", "reverse", "saturate", "select_last_index", "sorted"),
        *("storage_order", "training_mode", "transA", "transB", "upper"),
    }
)
"""Attributes of ONNX's operators that are 0 or 1. Their schemas allow all integers."""
_WORDS = {
    ("BitShift", "direction"): ("LEFT", "RIGHT"),
    ("Gelu", "approximate"): ("none", "tanh"),
    ("GridSample", "padding_mode"): ("zeros", "border", "reflection"),
    ("Resize", "coordinate_transformation_mode"): (
        *("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"),
        *("tf_half_pixel_for_nn", "tf_crop_and_resize"),
    ),
    ("Resize", "keep_aspect_ratio_policy"): ("stretch", "not_larger", "not_smaller"),
    ("Resize", "nearest_mode"): ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
    **{(name, "reduction"): ("none", "add", "mul", "max", "min") for name in ("ScatterElements", "ScatterND")},
    **{
        (name, "auto_pad"): ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
        for name in ("AveragePool", "Conv", "ConvInteger", "ConvTranspose", "LpPool", "MaxPool", "QLinearConv")
    },
}
"""Words that attributes of ONNX's operators may be, where an operator would also compute something for any other word.
Their schemas allow any string."""
_LARGE = ("start", "end", "value_int")
"""Attributes with numbers of 64 bits. Those of Shape are cut to the rank: the largest int64 is one way to write "to the
last axis". A constant may be any number."""
_TRAINING_DOMAINS = ("ai.onnx.training", "ai.onnx.preview.training")


def check_operators(model: ir.Model, where: str) -> None:
    """Raise UnsupportedError, naming node, operator and opset, for the first node that is not supported, MoecError for
    one that uses what nothing defines."""
    version = model.graph.opset_imports[""]
    for graph in model.graphs():
        _check_outputs(graph, where)
    for node in model.graph.all_nodes():
        _check_node(node, f"{where}: node {node_name(node)!r}", version, model.graph.opset_imports)


def check_bodies(bodies: Bodies, where: str) -> None:
    """Check the bodies of the dialect's functions like :func:`check_operators`: some take the place of their calls."""
    for function in (function for function in bodies.values() if function.domain == dialect.DOMAIN):
        place = f"{where}: function {function.domain}.{function.name}"
        _check_outputs(function.graph, place)
        for node in ir.traversal.RecursiveGraphIterator(function):
            version = function.opset_imports.get("", OPSET)
            _check_node(node, f"{place}, node {node_name(node)!r}", version, function.opset_imports)


def _check_node(node: ir.Node, place: str, version: int, imports: Mapping[str, int]) -> None:
    _check_references(node, place)
    check_attributes(node, place)
    _check_inputs(node, place)
    if node.domain == "" and not opset.is_known_early(node, version):
        _check_standard(node, place, version)
    elif node.domain != "":
        _check_custom(node, place, imports.get(node.domain))


def check_dialect(model: ir.Model, where: str) -> None:
    """Raise MoecError for a node of the moec dialect that breaks one of its rules, because saved graphs can be
    edited."""
    for message in dialect_violations(model):
        raise MoecError(f"{where}: {message}")


def check_types(model: ir.Model, where: str) -> None:
    """Raise UnsupportedError for a graph input or output that is not a tensor of numbers or booleans, MoecError for one
    of an impossible size."""
    for kind, values in (("input", model.graph.inputs), ("output", model.graph.outputs)):
        for value in values:
            if value.type is not None and not isinstance(value.type, ir.TensorType):
                raise UnsupportedError(
                    f"{where}: {kind} {value.name!r}{_beside(value)} is a {type(value.type).__name__}; expected a "
                    "tensor; export the model with one input or output per tensor"
                )
            if value.dtype == ir.DataType.STRING:
                raise UnsupportedError(
                    f"{where}: {kind} {value.name!r}{_beside(value)} holds strings; expected numbers; keep text "
                    "processing outside the model"
                )
            if any(isinstance(size, int) and not 0 <= size <= LARGEST_SIZE for size in value.shape or ()):
                raise MoecError(
                    f"{where}: {kind} {value.name!r}{_beside(value)} has the shape {list(value.shape or ())}; expected "
                    f"sizes from 0 to {LARGEST_SIZE} or names; export the model again"
                )


def check_constants(model: ir.Model, where: str) -> None:
    """Raise MoecError for the first Constant, in bodies too, that does not have exactly one value, of the type that its
    attribute's name says, and one output."""
    schema = onnx.defs.get_schema("Constant")
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type != "Constant" or node.domain != "":
            continue
        place = f"{where}: node {node_name(node)!r}"
        _check_references(node, place)
        _check_signature(node, f"{place}: Constant", schema)
        if len(node.attributes) != 1:
            raise MoecError(
                f"{place}: Constant has {len(node.attributes)} values; expected 1; the model is inconsistent"
            )
        if not node.outputs[0].name:
            raise MoecError(f"{place}: Constant has an output without a name; the model is inconsistent")
        if "sparse_value" in node.attributes:
            raise UnsupportedError(f"{place}: Constant is sparse, which is not supported; export it dense")


def _beside(value: ir.Value) -> str:
    """Name the operator that produces the value, or the first that uses it."""
    producer, users = value.producer(), value.uses()
    if producer is not None:
        return f" of {producer.op_type} (node {node_name(producer)!r})"
    return "".join(f" to {use.node.op_type} (node {node_name(use.node)!r})" for use in list(users)[:1])


def _check_outputs(graph: ir.Graph, where: str) -> None:
    for value in graph.outputs:
        if not _is_defined(value):
            raise MoecError(
                f"{where}: output {value.name!r} is no input, constant or result; the model is inconsistent"
            )


def _is_defined(value: ir.Value) -> bool:
    return value.producer() is not None or value.is_graph_input() or value.is_initializer()


def _check_inputs(node: ir.Node, place: str) -> None:
    for value in node.inputs:
        if value is None or _is_defined(value):
            continue
        raise MoecError(
            f"{place}: {node.op_type} uses {value.name!r}, which is no input, constant or result; the model is "
            "inconsistent"
        )


def _check_references(node: ir.Node, place: str) -> None:
    """Raise MoecError for an attribute that refers to a function's: outside a function there is none."""
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            raise MoecError(
                f"{place}: attribute {name!r} of {node.op_type} refers to {attribute.ref_attr_name!r} of a function, "
                "which is not there; the model is inconsistent"
            )


def _check_standard(node: ir.Node, place: str, version: int) -> None:
    if node.op_type.startswith("Sequence") or node.op_type in ("SplitToSequence", "ConcatFromSequence"):
        raise UnsupportedError(
            f"{place}: {node.op_type} (opset {version}) works on sequences of tensors, which are not supported; use "
            "Split, Concat or Stack in the source model"
        )
    try:
        schema = onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        raise UnsupportedError(
            f"{place}: {node.op_type} is not an operator of ONNX opset {version}; if it is a custom operator, export "
            "it as a local function"
        ) from None
    _check_signature(node, f"{place}: {node.op_type} (opset {version})", schema)


def _check_signature(node: ir.Node, place: str, schema: onnx.defs.OpSchema) -> None:
    """Raise MoecError where the numbers of inputs or outputs, or the attributes, are not the operator's."""
    for kind, values, least, most in (
        ("inputs", node.inputs, schema.min_input, schema.max_input),
        ("outputs", node.outputs, schema.min_output, schema.max_output),
    ):
        if not least <= len(values) <= most:
            raise MoecError(f"{place} has {len(values)} {kind}; expected {least} to {most}; the model is inconsistent")
    for value, declared in zip(node.inputs, schema.inputs, strict=False):
        if value is None and declared.option == onnx.defs.OpSchema.FormalParameterOption.Single:
            raise MoecError(f"{place} lacks its input {declared.name!r}; the model is inconsistent")
    _check_attributes(node, place, schema)


def _check_attributes(node: ir.Node, place: str, schema: onnx.defs.OpSchema) -> None:
    for name, declared in schema.attributes.items():
        if declared.required and name not in node.attributes:
            raise MoecError(f"{place} lacks its attribute {name!r}; the model is inconsistent")
    for name, attribute in node.attributes.items():
        if name == WIDTH and node.op_type == "DequantizeLinear":
            raise MoecError(
                f"{place} has the attribute {name!r}, which moec's own passes write for weights of so many bits; "
                "compile the model as it was before, and have the passes run then"
            )
        if name not in schema.attributes:
            raise MoecError(
                f"{place} has the attribute {name!r}; expected {', '.join(schema.attributes) or 'none'}; the model is "
                "inconsistent"
            )
        expected = str(schema.attributes[name].type).rpartition(".")[2]
        if attribute.type.name != expected:
            raise MoecError(
                f"{place} has attribute {name!r} of type {attribute.type.name}; expected {expected}; the model is "
                "inconsistent"
            )
        if attribute.type == ir.AttributeType.INT:
            _check_integer(name, attribute.as_int(), place)
        words = _WORDS.get((node.op_type, name))
        if words is not None and attribute.as_string() not in words:
            raise MoecError(
                f"{place} has {name}={attribute.as_string()!r}; expected {', '.join(words)}; the model is inconsistent"
            )


def _check_integer(name: str, number: int, place: str) -> None:
    """Raise MoecError for a flag that is neither 0 nor 1, and for a number that ONNX's shape inference would misread,
    because it reads axes as 32 bits."""
    if name in _FLAGS and number not in (0, 1):
        raise MoecError(f"{place} has {name}={number}; expected 0 or 1; the model is inconsistent")
    if name not in _LARGE and not -LARGEST_SIZE <= number <= LARGEST_SIZE:
        raise MoecError(
            f"{place} has {name}={number}; expected a number from {-LARGEST_SIZE} to {LARGEST_SIZE}; the model is "
            "inconsistent"
        )


def _check_custom(node: ir.Node, place: str, version: int | None) -> None:
    operator = f"{node.domain}.{node.op_type} (opset {version or 'not imported'})"
    if node.domain in _TRAINING_DOMAINS:
        raise UnsupportedError(f"{place}: {operator} is for training; export the model for inference (module.eval())")
    if node.domain == dialect.DOMAIN:
        if node.op_type not in dialect.INPUTS:
            raise UnsupportedError(f"{place}: {operator} is unknown; expected one of {', '.join(dialect.INPUTS)}")
    elif node.domain != CONTRIB_DOMAIN:
        raise UnsupportedError(
            f"{place}: {operator} is of an unknown domain; expected ONNX, {CONTRIB_DOMAIN} or {dialect.DOMAIN}; export "
            "the operator as a local function, or decomposed"
        )
