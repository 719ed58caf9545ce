"""What a node of the moec dialect must look like: a table of small rules, each with a name.

A rule looks at one node and returns what is wrong with it, or None. Sizes and types that are not known are never wrong.
Rules run in the order of the table and stop at the first that fails, so later rules may rely on earlier ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_origin, get_type_hints

import onnx_ir as ir

from moec.ir import dialect
from moec.ir.dialect import ExpertsSpec, LinearSpec, RouteSpec

Check = Callable[[ir.Node], "str | None"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """``operators`` is what the rule applies to; empty means every node of domain ``moec``."""

    name: str
    operators: tuple[str, ...]
    check: Check


RULES: list[Rule] = []


def _rule(name: str, *operators: str) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        RULES.append(Rule(name, operators, check))
        return check

    return add


def _size(value: ir.Value | None, axis: int) -> int | None:
    """The size along an axis when it is a known number."""
    if value is None or value.shape is None:
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def _axes(transposed: bool) -> tuple[int, int]:
    """Which axes of a weight [E, out, in] (or [E, in, out]) are out and in."""
    return (2, 1) if transposed else (1, 2)


def _disagreement(what: str, sizes: Mapping[str, int | None]) -> str | None:
    """A message when the known sizes are not all equal."""
    known = {name: size for name, size in sizes.items() if size is not None}
    if len(set(known.values())) <= 1:
        return None
    return f"{what} differs: " + ", ".join(f"{size} in {name}" for name, size in known.items())


def _first(*messages: str | None) -> str | None:
    return next((message for message in messages if message), None)


# --- every operator


@_rule("known-operator")
def _known_operator(node: ir.Node) -> str | None:
    if node.op_type not in dialect.INPUTS:
        return f"there is no such operator; the dialect has {', '.join(dialect.INPUTS)}"
    return None


@_rule("input-count")
def _input_count(node: ir.Node) -> str | None:
    names = dialect.INPUTS[node.op_type]
    if len(node.inputs) > len(names):
        return f"has {len(node.inputs)} inputs; at most {len(names)} are allowed ({', '.join(names)})"
    missing = [
        name for name, value in dialect.inputs_of(node).items() if value is None and name not in dialect.OPTIONAL_INPUTS
    ]
    return f"lacks input {', '.join(missing)}" if missing else None


@_rule("output-count")
def _output_count(node: ir.Node) -> str | None:
    names = dialect.OUTPUTS[node.op_type]
    return None if len(node.outputs) == len(names) else f"has {len(node.outputs)} outputs; expected {', '.join(names)}"


def _fields(node: ir.Node) -> dict[str, Any]:
    """The attributes the operator has, with their Python types."""
    return {name: hint for spec in dialect.SPECS[node.op_type] for name, hint in get_type_hints(spec).items()}


@_rule("known-attribute")
def _known_attribute(node: ir.Node) -> str | None:
    unknown = sorted(set(node.attributes) - set(_fields(node)))
    return f"has no attribute {', '.join(unknown)}; its attributes are {', '.join(_fields(node))}" if unknown else None


def _attribute_type(hint: Any) -> ir.AttributeType:
    if get_origin(hint) is tuple:
        return ir.AttributeType.INTS
    if get_args(hint) and isinstance(get_args(hint)[0], str):
        return ir.AttributeType.STRING
    return ir.AttributeType.INT if hint in (int, bool) else ir.AttributeType.FLOAT


@_rule("attribute-type")
def _attribute_types(node: ir.Node) -> str | None:
    for name, hint in _fields(node).items():
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.type != _attribute_type(hint):
            return f"attribute {name} is of type {attribute.type.name}; expected {_attribute_type(hint).name}"
    return None


@_rule("attribute-choice")
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
    "correction_bias": 1,
    "up": 3,
    "down": 3,
    "gate": 3,
}
_RANKS |= {"up_bias": 2, "down_bias": 2, "gate_bias": 2, "bias": 2, "weight": 2}
_OWN_RANKS: dict[str, dict[str, int | None]] = {"GroupedMatMul": {"weights": 3}, "Linear": {"x": None, "bias": 1}}
"""Where an operator differs; None means every rank."""


@_rule("rank")
def _ranks(node: ir.Node) -> str | None:
    ranks = _RANKS | _OWN_RANKS.get(node.op_type, {})
    for name, value in dialect.inputs_of(node).items():
        if value is None or value.shape is None or ranks[name] is None:
            continue
        if value.shape.rank() != ranks[name]:
            return f"{name} has rank {value.shape.rank()} (shape {value.shape}); expected rank {ranks[name]}"
    return None


# --- types


@_rule("experts-int32")
def _experts_int32(node: ir.Node) -> str | None:
    experts = node.outputs[1] if node.op_type == "Route" else dialect.inputs_of(node).get("experts")
    if experts is None or experts.dtype in (None, ir.DataType.INT32):
        return None
    return f"experts is {experts.dtype}; expert ids are INT32"


@_rule("float-routing")
def _float_routing(node: ir.Node) -> str | None:
    """Routing may be more precise than the experts (float32 logits for float16 experts), but must be of some float."""
    for name in ("logits", "correction_bias", "weights"):
        value = dialect.inputs_of(node).get(name)
        if value is not None and value.dtype is not None and not value.dtype.is_floating_point():
            return f"{name} is {value.dtype}; expected a floating-point type"
    return None


_COMPUTED_WITH = {"GroupedMatMul": ("x", "weights", "bias"), "Linear": ("x", "weight", "bias")}
"""Inputs of one type, where they are not x and the experts' weights."""


@_rule("dtype", "Experts", "MoE", "GroupedMatMul", "Linear")
def _dtypes(node: ir.Node) -> str | None:
    names = _COMPUTED_WITH.get(node.op_type, ("x", *dialect.EXPERT_WEIGHTS))
    inputs = {name: value for name, value in dialect.inputs_of(node).items() if name in names and value is not None}
    known = {name: value.dtype for name, value in inputs.items() if value.dtype is not None}
    if len(set(known.values())) <= 1:
        return None
    return "types differ: " + ", ".join(f"{name} is {dtype}" for name, dtype in known.items())


# --- products


@_rule("activation-group", "Experts", "MoE", "GroupedMatMul", "Linear")
def _activation_group(node: ir.Node) -> str | None:
    group = node.attributes.get("activation_group")
    arithmetic = node.attributes.get("arithmetic")
    if group is None or group.value == 0:
        return None
    if group.value < 0:
        return f"activation_group is {group.value}; it cannot be negative (0 means the whole row)"
    if arithmetic is None or arithmetic.value != "int8":
        return "activation_group belongs to arithmetic='int8'; no other arithmetic quantises activations"
    return None


@_rule("linear-sizes", "Linear")
def _linear_sizes(node: ir.Node) -> str | None:
    inputs = dialect.inputs_of(node)
    x = inputs["x"]
    if x is not None and x.shape is not None and not x.shape.rank():
        return "x is a scalar; expected at least one axis"
    N, K = _axes(dialect.spec_of(node, LinearSpec).transposed)
    return _first(
        _disagreement("input size", {"x": _size(x, -1), "weight": _size(inputs["weight"], K - 1)}),
        _disagreement("output size", {"weight": _size(inputs["weight"], N - 1), "bias": _size(inputs["bias"], 0)}),
    )


# --- routing


@_rule("k-present", "Route", "MoE")
def _k_present(node: ir.Node) -> str | None:
    return None if "k" in node.attributes else "lacks attribute k, the number of experts per token"


def _routed(node: ir.Node) -> tuple[RouteSpec, int | None]:
    """The spec, and how many experts the router knows."""
    return dialect.spec_of(node, RouteSpec), _size(dialect.inputs_of(node)["logits"], 1)


@_rule("k-range", "Route", "MoE")
def _k_range(node: ir.Node) -> str | None:
    spec, E = _routed(node)
    if spec.k < 1:
        return f"k is {spec.k}; at least one expert must be selected"
    return f"k is {spec.k}, but there are only {E} experts" if E is not None and spec.k > E else None


@_rule("selection-of-all", "Route", "MoE")
def _selection_of_all(node: ir.Node) -> str | None:
    spec, E = _routed(node)
    if spec.selection == "topk" or E is None or spec.k == E:
        return None
    return f"selection={spec.selection!r} has one slot per expert, but k is {spec.k} and there are {E} experts"


@_rule("capacity", "Route", "MoE")
def _capacity(node: ir.Node) -> str | None:
    spec, _ = _routed(node)
    if spec.capacity < 0:
        return f"capacity is {spec.capacity}; it cannot be negative"
    if spec.selection == "expert_choice" and spec.capacity == 0:
        return "selection='expert_choice' needs a capacity, the number of tokens an expert takes"
    return None


@_rule("groups", "Route", "MoE")
def _groups(node: ir.Node) -> str | None:
    spec, E = _routed(node)
    if spec.groups < 1 or not 1 <= spec.groups_kept <= spec.groups:
        return f"keeps {spec.groups_kept} of {spec.groups} groups"
    if E is None or spec.groups == 1:
        return None
    if E % spec.groups:
        return f"{E} experts do not divide into {spec.groups} equal groups"
    candidates = E // spec.groups * spec.groups_kept
    return f"k is {spec.k}, but the kept groups hold only {candidates} experts" if spec.k > candidates else None


@_rule("normalization", "Route", "MoE")
def _normalization(node: ir.Node) -> str | None:
    spec, _ = _routed(node)
    if spec.normalize_floor < 0:
        return f"normalize_floor is {spec.normalize_floor}; it cannot be negative"
    if spec.normalize_floor > 0 and not spec.normalize:
        return "normalize_floor belongs to normalize; nothing is divided without it"
    return None


@_rule("sparsemixer", "Route", "MoE")
def _sparse_mixer(node: ir.Node) -> str | None:
    spec, _ = _routed(node)
    if spec.score != "sparsemixer":
        return None
    return _first(
        f"the sparse mixer selects at most 2 experts, not {spec.k}" if spec.k > 2 else None,
        "the sparse mixer selects by itself: selection must be topk" if spec.selection != "topk" else None,
        "the sparse mixer knows no groups" if spec.groups > 1 else None,
        "the sparse mixer takes no correction_bias" if dialect.inputs_of(node)["correction_bias"] is not None else None,
    )


@_rule("correction-bias-size", "Route", "MoE")
def _correction_bias_size(node: ir.Node) -> str | None:
    bias = dialect.inputs_of(node)["correction_bias"]
    return _disagreement("number of experts", {"logits": _routed(node)[1], "correction_bias": _size(bias, 0)})


# --- experts


@_rule("gate-input", "Experts", "MoE")
def _gate_input(node: ir.Node) -> str | None:
    layout = dialect.spec_of(node, ExpertsSpec).gate_layout
    inputs = dialect.inputs_of(node)
    if layout == "separate":
        return "gate_layout='separate' needs input gate" if inputs["gate"] is None else None
    extra = [name for name in ("gate", "gate_bias") if inputs[name] is not None]
    return f"gate_layout={layout!r} takes no input {extra[0]}" if extra else None


@_rule("gate-attributes", "Experts", "MoE")
def _gate_attributes(node: ir.Node) -> str | None:
    spec = dialect.spec_of(node, ExpertsSpec)
    return _first(
        "limit needs a gate" if spec.limit and not spec.gated else None,
        "up_offset needs a gate" if spec.up_offset and not spec.gated else None,
        f"output_limit is {spec.output_limit}; it cannot be negative" if spec.output_limit < 0 else None,
        f"limit is {spec.limit}; it cannot be negative" if spec.limit < 0 else None,
        f"alpha belongs to silu, not to {spec.activation}" if spec.alpha != 1 and spec.activation != "silu" else None,
        f"identity_experts is {spec.identity_experts}" if spec.identity_experts < 0 else None,
    )


@_rule("expert-count", "Experts", "MoE")
def _expert_count(node: ir.Node) -> str | None:
    inputs = dialect.inputs_of(node)
    sizes = {name: _size(inputs[name], 0) for name in dialect.EXPERT_WEIGHTS}
    routed = _size(inputs.get("logits"), 1)
    if routed is not None:
        sizes["logits"] = routed - dialect.spec_of(node, ExpertsSpec).identity_experts
    return _disagreement("number of experts", sizes)


@_rule("hidden-size", "Experts", "MoE")
def _hidden_size(node: ir.Node) -> str | None:
    spec, inputs = dialect.spec_of(node, ExpertsSpec), dialect.inputs_of(node)
    up_in, down_out = _axes(spec.up_transposed)[1], _axes(spec.down_transposed)[0]
    sizes = {name: _size(inputs[name], up_in) for name in ("up", "gate")}
    return _disagreement("hidden size", {"x": _size(inputs["x"], 1), **sizes, "down": _size(inputs["down"], down_out)})


@_rule("intermediate-size", "Experts", "MoE")
def _intermediate_size(node: ir.Node) -> str | None:
    spec, inputs = dialect.spec_of(node, ExpertsSpec), dialect.inputs_of(node)
    up_out, down_in = _axes(spec.up_transposed)[0], _axes(spec.down_transposed)[1]
    up = _size(inputs["up"], up_out)
    if up is not None and spec.gate_layout in ("gate_up", "up_gate", "interleaved"):
        if up % 2:
            return f"up holds gate and up projection, but its output size {up} is odd"
        up //= 2
    sizes = {"up": up, "gate": _size(inputs["gate"], up_out), "down": _size(inputs["down"], down_in)}
    return _disagreement("intermediate size", sizes)


@_rule("hidden-sizes", "Experts", "MoE")
def _hidden_sizes(node: ir.Node) -> str | None:
    spec, inputs = dialect.spec_of(node, ExpertsSpec), dialect.inputs_of(node)
    if not spec.hidden_sizes:
        return None
    largest = _size(inputs["down"], _axes(spec.down_transposed)[1])
    if min(spec.hidden_sizes) < 0 or (largest is not None and max(spec.hidden_sizes) > largest):
        found = f"between {min(spec.hidden_sizes)} and {max(spec.hidden_sizes)}"
        return f"hidden_sizes lie {found}; an expert has 0 to {largest or 'f'} hidden units"
    return _disagreement("number of experts", {"hidden_sizes": len(spec.hidden_sizes), "up": _size(inputs["up"], 0)})


@_rule("bias-size", "Experts", "MoE")
def _bias_size(node: ir.Node) -> str | None:
    spec, inputs = dialect.spec_of(node, ExpertsSpec), dialect.inputs_of(node)
    up_out, down_out = _axes(spec.up_transposed)[0], _axes(spec.down_transposed)[0]
    outputs = {"up": up_out, "gate": up_out, "down": down_out}
    return _first(
        *(
            _disagreement("output size", {name: _size(inputs[name], axis), bias: _size(inputs[bias], 1)})
            for name, axis in outputs.items()
            for bias in [f"{name}_bias"]
        )
    )


@_rule("pairs", "Experts", "GroupedMatMul")
def _pairs(node: ir.Node) -> str | None:
    inputs = dialect.inputs_of(node)
    routing = [name for name in ("weights", "experts") if node.op_type == "Experts" or name == "experts"]
    tokens = {name: _size(inputs[name], 0) for name in ("x", *routing)}
    slots = {name: _size(inputs[name], 1) for name in routing}
    return _first(_disagreement("number of tokens", tokens), _disagreement("number of experts per token", slots))


@_rule("token-count", "MoE")
def _token_count(node: ir.Node) -> str | None:
    inputs = dialect.inputs_of(node)
    return _disagreement("number of tokens", {name: _size(inputs[name], 0) for name in ("x", "logits")})


@_rule("grouped-sizes", "GroupedMatMul")
def _grouped_sizes(node: ir.Node) -> str | None:
    x, weights, _, bias = dialect.inputs_of(node).values()
    return _first(
        _disagreement("number of experts", {"weights": _size(weights, 0), "bias": _size(bias, 0)}),
        _disagreement("input size", {"x": _size(x, 1), "weights": _size(weights, 1)}),
        _disagreement("output size", {"weights": _size(weights, 2), "bias": _size(bias, 1)}),
    )
