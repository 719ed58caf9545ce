"""The pass that writes layers of experts as onnxruntime's operator MoE, which onnxruntime runs."""

from __future__ import annotations

import numpy as np
import pytest

E, D, F = 5, 8, 6
GATED = {
    "gate_up": f"float[{E},{2 * F},{D}] up, float[{E},{D},{F}] down",
    "separate": f"float[{E},{F},{D}] up, float[{E},{D},{F}] down, float[{E},{F},{D}] gate",
    "none": f"float[{E},{F},{D}] up, float[{E},{D},{F}] down",
}


def layer(
    route: str = 'k = 2, score = "softmax_topk"', experts: str = "", weights: str = "up, down", declared: str = ""
) -> str:
    return f"""(float[T,{D}] x, float[T,N] logits) => (float[T,{D}] y) <{declared or GATED["gate_up"]}> {{
       w, e = moec.Route <{route}> (logits)
       y = moec.Experts <{experts}> (x, w, e, {weights})
    }}""".replace("<>", "").replace("T,N]", f"T,{E + ('identity_experts' in experts)}]")


def cases(normal, experts: int = E):
    return [{"x": normal(tokens, D), "logits": normal(tokens, experts)} for tokens in (9, 1, 0)]


def operators(model) -> list[str]:
    return [node.op_type for node in model.graph if node.domain]


@pytest.mark.parametrize(
    "route",
    [
        'k = 2, score = "softmax_topk"',
        "k = 2",
        'k = 3, score = "sigmoid", normalize = 1, scale = 2.5',
        f'k = {E}, selection = "all"',
        f'k = {E}, selection = "expert_choice", capacity = 2',
        "k = 2, threshold = 0.3",
        "k = 2, capacity = 1",
        'k = 3, score = "relu"',
    ],
)
def test_routers(exported, normal, route):
    """Also with pairs that are dropped, tokens without any pair, and weights that do not sum to 1."""
    feeds = cases(normal)
    feeds[0]["logits"][2] = -3
    model, _ = exported(layer(route), *feeds)
    assert operators(model) == ["MoE"]


@pytest.mark.parametrize(
    ("experts", "declared", "weights"),
    [
        ('gate_layout = "separate", limit = 0.5, alpha = 1.702, up_offset = 1.0', GATED["separate"], "up, down, gate"),
        ('gate_layout = "up_gate"', "", "up, down"),
        ('gate_layout = "interleaved"', f"{GATED['gate_up']}, float[{E},{2 * F}] b, float[{E},{D}] c",
         "up, down, , b, c"),
        ('gate_layout = "gate_up"', f"{GATED['gate_up']}, float[{E},{2 * F}] b", "up, down, , b"),
        ("up_transposed = 1, down_transposed = 1", f"float[{E},{D},{2 * F}] up, float[{E},{F},{D}] down", "up, down"),
        ('gate_layout = "none", activation = "relu"', GATED["none"], "up, down"),
        ('gate_layout = "none", activation = "gelu_tanh"', f"{GATED['none']}, float[{E},{D}] c", "up, down, , , c"),
        ('gate_layout = "none", activation = "silu"', GATED["none"], "up, down"),
        ('gate_layout = "none", activation = "identity"', GATED["none"], "up, down"),
        (f"hidden_sizes = [{F - 1}, 2, 1, {F - 1}, 3]", "", "up, down"),
        ("identity_experts = 1", "", "up, down"),
    ],
)  # fmt: skip
def test_experts(exported, normal, experts, declared, weights):
    feeds = cases(normal, E + ("identity_experts" in experts))
    text = layer("k = 3", experts, weights, declared)
    model, report = exported(text, *feeds)
    assert operators(model) == ["MoE"] and not report.remarks
    largest = max(value.const_value.size for value in model.graph.initializers.values())
    assert largest <= E * 2 * F * D


def test_a_weight_on_the_input_of_the_only_expert(exported, normal):
    model, _ = exported(layer('k = 1, score = "sigmoid", threshold = 0.5', "weight_on_input = 1"), *cases(normal))
    assert operators(model) == ["MoE"]


def test_experts_that_a_table_maps_to_one_add_up_their_weights(exported, normal):
    text = (
        layer("k = 3")
        .replace("(x, w, e,", "(x, w, s,")
        .replace("y = moec", "s = Gather <axis = 0> (table, e) y = moec")
    )
    table = f"{GATED['gate_up']}, int32[{E + 1}] table = {{0, 1, 1, -1, 4, -1}}"
    model, _ = exported(text.replace(GATED["gate_up"], table), *cases(normal))
    assert operators(model) == ["MoE"]


def test_fused_layers_and_narrow_numbers(exported, normal):
    feeds = [{name: array.astype(np.float16) for name, array in case.items()} for case in cases(normal)]
    text = layer('k = 2, score = "softmax_topk"').replace("float[", "float16[")
    assert operators(exported(text, *feeds, passes="fuse-route-dispatch", tolerance=4e-3)[0]) == ["MoE"]


def test_weights_of_16_bits_stay_so(exported, normal):
    model, _ = exported(layer(), *cases(normal), passes="cast-weights{dtype=bf16}", tolerance=1e-2)
    stored = [value.dtype.name for value in model.graph.initializers.values() if value.const_value.size > D * F]
    assert operators(model) == ["MoE"] and stored == ["BFLOAT16", "BFLOAT16"]


@pytest.mark.parametrize(("made_by", "operator"), [("Abs (scores)", "MoE"), ("Neg (scores)", None)])
def test_weights_that_other_operators_compute(exported, normal, made_by, operator):
    """They are given as logarithms only where they cannot be negative."""
    text = layer(f'k = {E}, selection = "all"').replace("(x, w, e,", "(x, s, e,")
    text = text.replace("y = moec", f"scores = Tanh (logits) s = {made_by} y = moec")
    model, report = exported(text, *cases(normal))
    assert operators(model) == ([operator] if operator else [])
    assert ["may be negative" in remark.message for remark in report.remarks] == ([] if operator else [True])
