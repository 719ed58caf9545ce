"""The rules that a node of the moec dialect has to meet: a table of small checks, each with a name.

A rule looks at one node and returns a message if it is broken, else None. Unknown sizes and types never break a rule.
Rules run in the order of the table and stop at the first that fails, so later rules may rely on earlier ones.
"""

from __future__ import annotations

import dataclasses
from typing import Any, get_args, get_origin

import onnx_ir as ir

from moec.common.field_types import field_types
from moec.ir import dialect
from moec.ir.rule import Rule, Rules
from moec.ir.rules_products import PRODUCTS
from moec.ir.rules_routing import ROUTING

_FORM = Rules()


@_FORM.add("known-operator")
def _known_operator(node: ir.Node) -> str | None:
    if node.op_type not in dialect.INPUTS:
        return f"there is no such operator; the dialect has {', '.join(dialect.INPUTS)}"
    return None


_OPTIONAL = {("SendRows", "weights"), ("ReceiveRows", "weights")}
"""Inputs that are optional for these operators alone."""


@_FORM.add("input-count")
def _input_count(node: ir.Node) -> str | None:
    names = dialect.INPUTS[node.op_type]
    if len(node.inputs) > len(names):
        return f"has {len(node.inputs)} inputs; at most {len(names)} are allowed ({', '.join(names)})"
    missing = [
        name
        for name, value in dialect.inputs_of(node).items()
        if value is None and name not in dialect.OPTIONAL_INPUTS and (node.op_type, name) not in _OPTIONAL
    ]
    return f"lacks input {', '.join(missing)}" if missing else None


@_FORM.add("output-count")
def _output_count(node: ir.Node) -> str | None:
    names = dialect.OUTPUTS[node.op_type]
    return None if len(node.outputs) == len(names) else f"has {len(node.outputs)} outputs; expected {', '.join(names)}"


def _fields(node: ir.Node) -> dict[str, Any]:
    """The attributes the operator has, with their Python types."""
    return {name: hint for spec in dialect.SPECS[node.op_type] for name, hint in field_types(spec).items()}


@_FORM.add("known-attribute")
def _known_attribute(node: ir.Node) -> str | None:
    unknown = sorted(set(node.attributes) - set(_fields(node)))
    return f"has no attribute {', '.join(unknown)}; its attributes are {', '.join(_fields(node))}" if unknown else None


def _attribute_type(hint: Any) -> ir.AttributeType:
    if get_origin(hint) is tuple:
        return ir.AttributeType.INTS
    if get_args(hint) and isinstance(get_args(hint)[0], str):
        return ir.AttributeType.STRING
    return ir.AttributeType.INT if hint in (int, bool) else ir.AttributeType.FLOAT


@_FORM.add("attribute-type")
def _attribute_types(node: ir.Node) -> str | None:
    for name, hint in _fields(node).items():
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.type != _attribute_type(hint):
            return f"attribute {name} is of type {attribute.type.name}; expected {_attribute_type(hint).name}"
    return None


@_FORM.add("attribute-choice")
def _attribute_choices(node: ir.Node) -> str | None:
    for spec in dialect.SPECS[node.op_type]:
        for field in dataclasses.fields(spec):
            attribute = node.attributes.get(field.name)
            if attribute is None or attribute.type != ir.AttributeType.STRING:
                continue
            allowed = dialect.choices(spec, field.name)
            if attribute.value not in allowed:
                return f"{field.name}={attribute.value!r} is unknown; allowed are {', '.join(allowed)}"
    return None


_RANKS: dict[str, int | None] = {
    "x": 2,
    "logits": 2,
    "weights": 2,
    "experts": 2,
    "rows": 2,
    "results": 2,
    "sent": 1,
    "offsets": 1,
    "positions": 2,
    "correction_bias": 1,
    "tolerance": 1,
    "up": 3,
    "down": 3,
    "gate": 3,
}
_RANKS |= {"up_bias": 2, "down_bias": 2, "gate_bias": 2, "bias": 2, "weight": 2}
_OWN_RANKS: dict[str, dict[str, int | None]] = {
    "GroupedMatMul": {"weights": 3},
    "Linear": {"x": None, "bias": 1},
    "Expect": {"weights": 3},
    "Absent": {"weights": 3},
    "RoundRows": {"x": None},
}
"""Ranks of operators that differ; None means every rank."""


@_FORM.add("rank")
def _ranks(node: ir.Node) -> str | None:
    ranks = _RANKS | _OWN_RANKS.get(node.op_type, {})
    for name, value in dialect.inputs_of(node).items():
        if value is None or value.shape is None or ranks[name] is None:
            continue
        if value.shape.rank() != ranks[name]:
            return f"{name} has rank {value.shape.rank()} (shape {value.shape}); expected rank {ranks[name]}"
    return None


# --- types


_INT32 = {
    "experts": "expert ids are INT32",
    "offsets": "places of rows are INT32",
    "positions": "places of rows are INT32",
    "tokens": "places of tokens are INT32",
    "owners": "expert ids are INT32",
    "sent": "an order without data is INT32",
}
"""Inputs and outputs that hold ids and places."""


@_FORM.add("ids-int32")
def _ids_int32(node: ir.Node) -> str | None:
    outputs = zip(dialect.OUTPUTS[node.op_type], node.outputs, strict=True)
    for name, value in (*dialect.inputs_of(node).items(), *outputs):
        if name in _INT32 and value is not None and value.dtype not in (None, ir.DataType.INT32):
            return f"{name} is {value.dtype}; {_INT32[name]}"
    return None


@_FORM.add("float-routing")
def _float_routing(node: ir.Node) -> str | None:
    """Routing may be more precise than the experts (float32 logits for float16 experts), but must have a float type."""
    for name in ("logits", "correction_bias", "tolerance", "weights"):
        value = dialect.inputs_of(node).get(name)
        if value is not None and value.dtype is not None and not value.dtype.is_floating_point():
            return f"{name} is {value.dtype}; expected a floating-point type"
    return None


_COMPUTED_WITH = {"GroupedMatMul": ("x", "weights", "bias"), "Linear": ("x", "weight", "bias")}
"""Inputs that must share one type, for operators where these are not x and the experts' weights."""


@_FORM.add("dtype", "Experts", "MoE", "GroupedMatMul", "Linear")
def _dtypes(node: ir.Node) -> str | None:
    names = _COMPUTED_WITH.get(node.op_type, ("x", *dialect.EXPERT_WEIGHTS))
    inputs = {name: value for name, value in dialect.inputs_of(node).items() if name in names and value is not None}
    declared = {name: value.dtype for name, value in inputs.items() if value.dtype is not None}
    if len(set(declared.values())) <= 1:
        return None
    return "types differ: " + ", ".join(f"{name} is {dtype}" for name, dtype in declared.items())


# --- arithmetic


@_FORM.add("activation-group", "Experts", "MoE", "GroupedMatMul", "Linear")
def _activation_group(node: ir.Node) -> str | None:
    group = node.attributes.get("activation_group")
    arithmetic = node.attributes.get("arithmetic")
    if group is None or group.value == 0:
        return None
    if group.value < 0:
        return f"activation_group is {group.value}; it cannot be negative (0 means the whole row)"
    if arithmetic is None or arithmetic.value not in dialect.GROUPED_ARITHMETICS:
        names = ", ".join(dialect.GROUPED_ARITHMETICS)
        return f"activation_group belongs to an arithmetic of {names}; no other one quantises activations"
    return None


RULES: tuple[Rule, ...] = (*_FORM, *ROUTING, *PRODUCTS)
