"""Rules of products and of experts: gates, and sizes that have to be equal (:mod:`moec.ir.rules`)."""

from __future__ import annotations

import onnx_ir as ir

from moec.ir import dialect
from moec.ir.dialect import DispatchSpec, ExpertsSpec, LinearSpec
from moec.ir.rule import Rules, disagreement, first_of, known_size, weight_axes

PRODUCTS = Rules()


@PRODUCTS.add("linear-sizes", "Linear")
def _linear_sizes(node: ir.Node) -> str | None:
    inputs = dialect.inputs_of(node)
    x, weight = inputs["x"], inputs["weight"]
    if x is not None and x.shape is not None and not x.shape.rank():
        return "x is a scalar; expected at least one axis"
    N, K = weight_axes(dialect.spec_of(node, LinearSpec).transposed)
    return first_of(
        disagreement("input size", {"x": known_size(x, -1), "weight": known_size(weight, K - 1)}),
        disagreement("output size", {"weight": known_size(weight, N - 1), "bias": known_size(inputs["bias"], 0)}),
    )


# --- experts


@PRODUCTS.add("dispatched-experts", "Dispatch")
def _dispatched_experts(node: ir.Node) -> str | None:
    if "expert_count" not in node.attributes:
        return "lacks attribute expert_count, the number of experts"
    count = dialect.spec_of(node, DispatchSpec).expert_count
    return None if count >= 1 else f"expert_count is {count}; expected at least one expert"


@PRODUCTS.add("gate-input", "Experts", "MoE")
def _gate_input(node: ir.Node) -> str | None:
    layout = dialect.spec_of(node, ExpertsSpec).gate_layout
    inputs = dialect.inputs_of(node)
    if layout == "separate":
        return "gate_layout='separate' needs input gate" if inputs["gate"] is None else None
    extra = [name for name in ("gate", "gate_bias") if inputs[name] is not None]
    return f"gate_layout={layout!r} takes no input {extra[0]}" if extra else None


@PRODUCTS.add("gate-attributes", "Experts", "MoE")
def _gate_attributes(node: ir.Node) -> str | None:
    spec = dialect.spec_of(node, ExpertsSpec)
    return first_of(
        "limit needs a gate" if spec.limit and not spec.gated else None,
        "up_offset needs a gate" if spec.up_offset and not spec.gated else None,
        f"output_limit is {spec.output_limit}; it cannot be negative" if spec.output_limit < 0 else None,
        f"limit is {spec.limit}; it cannot be negative" if spec.limit < 0 else None,
        f"alpha belongs to silu, not to {spec.activation}" if spec.alpha != 1 and spec.activation != "silu" else None,
        f"identity_experts is {spec.identity_experts}" if spec.identity_experts < 0 else None,
    )


@PRODUCTS.add("expert-count", "Experts", "MoE")
def _expert_count(node: ir.Node) -> str | None:
    inputs = dialect.inputs_of(node)
    sizes = {name: known_size(inputs[name], 0) for name in dialect.EXPERT_WEIGHTS}
    routed = known_size(inputs.get("logits"), 1)
    if routed is not None:
        sizes["logits"] = routed - dialect.spec_of(node, ExpertsSpec).identity_experts
    return disagreement("number of experts", sizes)


@PRODUCTS.add("hidden-size", "Experts", "MoE")
def _hidden_size(node: ir.Node) -> str | None:
    spec, inputs = dialect.spec_of(node, ExpertsSpec), dialect.inputs_of(node)
    up_in, down_out = weight_axes(spec.up_transposed)[1], weight_axes(spec.down_transposed)[0]
    sizes = {name: known_size(inputs[name], up_in) for name in ("up", "gate")}
    return disagreement(
        "hidden size", {"x": known_size(inputs["x"], 1), **sizes, "down": known_size(inputs["down"], down_out)}
    )


@PRODUCTS.add("intermediate-size", "Experts", "MoE")
def _intermediate_size(node: ir.Node) -> str | None:
    spec, inputs = dialect.spec_of(node, ExpertsSpec), dialect.inputs_of(node)
    up_out, down_in = weight_axes(spec.up_transposed)[0], weight_axes(spec.down_transposed)[1]
    up = known_size(inputs["up"], up_out)
    if up is not None and spec.gate_layout in ("gate_up", "up_gate", "interleaved"):
        if up % 2:
            return f"up holds gate and up projection, but its output size {up} is odd"
        up //= 2
    sizes = {"up": up, "gate": known_size(inputs["gate"], up_out), "down": known_size(inputs["down"], down_in)}
    return disagreement("intermediate size", sizes)


@PRODUCTS.add("hidden-sizes", "Experts", "MoE")
def _hidden_sizes(node: ir.Node) -> str | None:
    spec, inputs = dialect.spec_of(node, ExpertsSpec), dialect.inputs_of(node)
    if not spec.hidden_sizes:
        return None
    largest = known_size(inputs["down"], weight_axes(spec.down_transposed)[1])
    if min(spec.hidden_sizes) < 0 or (largest is not None and max(spec.hidden_sizes) > largest):
        actual = f"between {min(spec.hidden_sizes)} and {max(spec.hidden_sizes)}"
        return f"hidden_sizes lie {actual}; an expert has 0 to {largest or 'f'} hidden units"
    return disagreement(
        "number of experts", {"hidden_sizes": len(spec.hidden_sizes), "up": known_size(inputs["up"], 0)}
    )


@PRODUCTS.add("bias-size", "Experts", "MoE")
def _bias_size(node: ir.Node) -> str | None:
    spec, inputs = dialect.spec_of(node, ExpertsSpec), dialect.inputs_of(node)
    up_out, down_out = weight_axes(spec.up_transposed)[0], weight_axes(spec.down_transposed)[0]
    outputs = {"up": up_out, "gate": up_out, "down": down_out}
    return first_of(
        *(
            disagreement("output size", {name: known_size(inputs[name], axis), bias: known_size(inputs[bias], 1)})
            for name, axis in outputs.items()
            for bias in [f"{name}_bias"]
        )
    )


@PRODUCTS.add("pairs", "Experts", "Combine", "SendRows", "ReceiveRows")
def _pairs(node: ir.Node) -> str | None:
    inputs = dialect.inputs_of(node)
    routing = ("weights", "positions" if node.op_type == "Combine" else "experts")
    tokens = {name: known_size(inputs.get(name), 0) for name in ("x", *routing)}
    slots = {name: known_size(inputs.get(name), 1) for name in routing}
    return first_of(disagreement("number of tokens", tokens), disagreement("number of experts per token", slots))


@PRODUCTS.add("token-count", "MoE")
def _token_count(node: ir.Node) -> str | None:
    inputs = dialect.inputs_of(node)
    return disagreement("number of tokens", {name: known_size(inputs[name], 0) for name in ("x", "logits")})


@PRODUCTS.add("grouped-sizes", "GroupedMatMul")
def _grouped_sizes(node: ir.Node) -> str | None:
    x, weights, offsets, bias = dialect.inputs_of(node).values()
    bounds = known_size(offsets, 0)
    counts = {"weights": known_size(weights, 0), "bias": known_size(bias, 0)}
    return first_of(
        disagreement("number of experts", {**counts, "offsets": None if bounds is None else bounds - 1}),
        disagreement("input size", {"x": known_size(x, 1), "weights": known_size(weights, 1)}),
        disagreement("output size", {"weights": known_size(weights, 2), "bias": known_size(bias, 1)}),
    )
