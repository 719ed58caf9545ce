"""The vectorised semantics of experts and products against loops that follow their specs word by word."""

import dataclasses
import math

import ml_dtypes
import numpy as np
import pytest

from moec.ir.dialect import ExpertsSpec, LinearSpec, RouteSpec
from moec.ir.products import rounded_rows
from moec.ir.semantics import erf, experts, linear, moe, route


def activate(name: str, x: float, alpha: float) -> float:
    return {
        "silu": lambda: x / (1 + math.exp(-alpha * x)),
        "gelu": lambda: x / 2 * (1 + math.erf(x / math.sqrt(2))),
        "gelu_tanh": lambda: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "relu": lambda: max(x, 0.0),
        "relu2": lambda: max(x, 0.0) ** 2,
        "sigmoid": lambda: 1 / (1 + math.exp(-x)),
        "tanh": lambda: math.tanh(x),
        "identity": lambda: x,
    }[name]()


def expert_one_row(spec: ExpertsSpec, row: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    up = weights["up"].T if spec.up_transposed else weights["up"]
    down = weights["down"].T if spec.down_transposed else weights["down"]
    f = down.shape[1]
    projected = [float(np.dot(line, row)) + b for line, b in zip(up, weights["up_bias"], strict=True)]
    hidden = []
    for i in range(f):
        if spec.gate_layout == "none":
            hidden.append(activate(spec.activation, projected[i], spec.alpha))
            continue
        if spec.gate_layout == "separate":
            line = weights["gate"].T[i] if spec.up_transposed else weights["gate"][i]
            g, u = float(np.dot(line, row)) + weights["gate_bias"][i], projected[i]
        else:
            places = {"gate_up": (i, i + f), "up_gate": (i + f, i), "interleaved": (2 * i, 2 * i + 1)}
            g, u = (projected[place] for place in places[spec.gate_layout])
        if spec.limit > 0:
            g, u = min(g, spec.limit), min(max(u, -spec.limit), spec.limit)
        hidden.append(activate(spec.activation, g, spec.alpha) * (u + spec.up_offset))
    return down @ np.array(hidden) + weights["down_bias"]


def make_weights(spec: ExpertsSpec, E: int, d: int, f: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    up_out = 2 * f if spec.gated and spec.gate_layout != "separate" else f
    weights = {
        "up": generator.normal(size=(E, d, up_out) if spec.up_transposed else (E, up_out, d)),
        "down": generator.normal(size=(E, f, d) if spec.down_transposed else (E, d, f)),
        "up_bias": generator.normal(size=(E, up_out)),
        "down_bias": generator.normal(size=(E, d)),
    }
    if spec.gate_layout == "separate":
        weights["gate"] = generator.normal(size=(E, d, f) if spec.up_transposed else (E, f, d))
        weights["gate_bias"] = generator.normal(size=(E, f))
    return weights


EXPERTS = [
    *(ExpertsSpec(activation, layout) for layout in ("none", "gate_up") for activation in ("silu", "gelu", "relu")),
    *(ExpertsSpec(activation, "none") for activation in ("gelu_tanh", "relu2", "sigmoid", "tanh", "identity")),
    *(ExpertsSpec("silu", layout) for layout in ("separate", "up_gate", "interleaved")),
    ExpertsSpec("silu", "interleaved", alpha=1.702, limit=1.0, up_offset=1.0, up_transposed=True, down_transposed=True),
    ExpertsSpec("gelu", "separate", up_transposed=True),
    ExpertsSpec("silu", "gate_up", weight_on_input=True),
    ExpertsSpec("relu", "none", down_transposed=True, identity_experts=2),
    ExpertsSpec("silu", "up_gate", weight_on_input=True, identity_experts=1),
]


@pytest.mark.parametrize("spec", EXPERTS, ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 6])
def test_experts_are_what_the_loop_computes(spec: ExpertsSpec, tokens: int) -> None:
    E, d, f, k = 4, 5, 3, 3
    generator = np.random.default_rng(tokens)
    weights = make_weights(spec, E, d, f)
    x, mix = generator.normal(size=(tokens, d)), generator.normal(size=(tokens, k))
    ids = generator.integers(-1, E + spec.identity_experts, size=(tokens, k), dtype=np.int32)
    y = experts(spec, x, mix, ids, **weights)
    assert y.shape == (tokens, d)
    for token in range(tokens):
        expected = np.zeros(d)
        for weight, expert in zip(mix[token], ids[token], strict=True):
            row = x[token] * weight if spec.weight_on_input else x[token]
            if expert >= E:
                out = row
            elif expert >= 0:
                out = expert_one_row(spec, row, {name: w[expert] for name, w in weights.items()})
            else:
                continue
            expected += out if spec.weight_on_input else weight * out
        np.testing.assert_allclose(y[token], expected, rtol=1e-10, atol=1e-12)


def test_experts_without_biases() -> None:
    spec = ExpertsSpec("relu", "none")
    weights = make_weights(spec, 2, 4, 3)
    biases = {name: np.zeros_like(weights[name]) for name in ("up_bias", "down_bias")}
    x, mix, ids = np.ones((3, 4)), np.ones((3, 1)), np.array([[0], [1], [1]], np.int32)
    without = experts(spec, x, mix, ids, weights["up"], weights["down"])
    np.testing.assert_array_equal(without, experts(spec, x, mix, ids, **{**weights, **biases}))


@pytest.mark.parametrize("wrong", [-2, 3])
def test_an_id_out_of_range_is_refused(wrong: int) -> None:
    spec = ExpertsSpec("relu", "none", identity_experts=1)
    weights = make_weights(spec, 2, 4, 3)
    with pytest.raises(ValueError, match="expected -1 to 2"):
        experts(spec, np.ones((1, 4)), np.ones((1, 1)), np.array([[wrong]], np.int32), **weights)


@pytest.mark.parametrize(
    "spec",
    [
        ExpertsSpec(),
        ExpertsSpec("gelu", "interleaved", down_transposed=True),
        ExpertsSpec("relu", "none", up_transposed=True),
    ],
    ids=["gate_up", "interleaved", "plain"],
)
def test_an_expert_has_only_its_own_hidden_units(spec: ExpertsSpec) -> None:
    E, d, f, sizes = 3, 4, 5, (5, 2, 0)
    weights = make_weights(spec, E, d, f)
    cut = {name: array.copy() for name, array in weights.items()}
    for expert, size in enumerate(sizes):  # a unit that gives nothing is one that is not there
        down = cut["down"][expert] if spec.down_transposed else cut["down"][expert].T
        down[size:] = 0
        unread = weights["down"][expert] if spec.down_transposed else weights["down"][expert].T
        unread[size:] = np.nan
    x, mix = np.random.default_rng(0).normal(size=(6, d)), np.ones((6, 1))
    ids = np.array([[0], [1], [2], [2], [1], [0]], np.int32)
    y = experts(dataclasses.replace(spec, hidden_sizes=sizes), x, mix, ids, **weights)
    np.testing.assert_allclose(y, experts(spec, x, mix, ids, **cut), rtol=1e-12)


def test_both_products_of_an_expert_round_their_rows() -> None:
    generator = np.random.default_rng(0)
    spec = ExpertsSpec("relu", "none", arithmetic="int8", activation_group=4)
    up, down, x = (generator.normal(size=size) for size in [(1, 6, 8), (1, 8, 6), (3, 8)])
    hidden = np.maximum(rounded_rows(spec, x) @ up[0].T, 0)
    expected = rounded_rows(spec, hidden) @ down[0].T
    y = experts(spec, x, np.ones((3, 1)), np.zeros((3, 1), np.int32), up, down)
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    assert (
        np.abs(y - experts(ExpertsSpec("relu", "none"), x, np.ones((3, 1)), np.zeros((3, 1), int), up, down)).max()
        > 1e-4
    )


@pytest.mark.parametrize("shape", [(8,), (0, 8), (3, 8), (2, 1, 3, 8)])
@pytest.mark.parametrize("transposed", [False, True])
def test_linear_works_on_the_last_axis(shape: tuple[int, ...], transposed: bool) -> None:
    generator = np.random.default_rng(0)
    x, weight, bias = generator.normal(size=shape), generator.normal(size=(5, 8)), generator.normal(size=5)
    spec = LinearSpec(activation="silu", transposed=transposed)
    y = linear(spec, x, weight.T if transposed else weight, bias)
    z = np.einsum("...k,nk->...n", x, weight) + bias
    np.testing.assert_allclose(y, z / (1 + np.exp(-z)), rtol=1e-10)


def test_linear_rounds_its_rows_and_needs_no_bias() -> None:
    x, weight = np.array([[1.0, 127.3]], np.float32), np.array([[1.0, 1.0]], np.float32)
    scale = np.float32(127.3) / np.float32(127)
    y = linear(LinearSpec(arithmetic="int8"), x, weight)
    np.testing.assert_allclose(y, [[128 * scale]], rtol=1e-6)


def test_moe_is_route_then_experts() -> None:
    route_spec, spec = RouteSpec(k=2, normalize=True), ExpertsSpec()
    weights = make_weights(spec, 4, 5, 3)
    generator = np.random.default_rng(0)
    x, logits, bias = generator.normal(size=(6, 5)), generator.normal(size=(6, 4)), generator.normal(size=4)
    expected = experts(spec, x, *route(route_spec, logits, bias), **weights)
    np.testing.assert_array_equal(moe(route_spec, spec, x, logits, bias, **weights), expected)


@pytest.mark.parametrize("narrow", [np.float16, ml_dtypes.bfloat16])
def test_narrow_floats_are_rounded_once_at_the_end(narrow: type) -> None:
    spec = ExpertsSpec()
    weights = {name: w.astype(narrow) for name, w in make_weights(spec, 4, 5, 3).items()}
    generator = np.random.default_rng(0)
    x, logits = generator.normal(size=(6, 5)).astype(narrow), generator.normal(size=(6, 4)).astype(narrow)
    mix, ids = route(RouteSpec(k=2), logits)
    y = experts(spec, x, mix, ids, **weights)
    assert mix.dtype == y.dtype == narrow
    wide = {name: w.astype(np.float32) for name, w in weights.items()}
    exact = experts(spec, x.astype(np.float32), mix.astype(np.float32), ids, **wide)
    np.testing.assert_array_equal(y, exact.astype(narrow))


def test_the_dtype_of_the_computation_can_be_chosen() -> None:
    spec = ExpertsSpec()
    weights = {name: w.astype(np.float32) for name, w in make_weights(spec, 4, 5, 3).items()}
    x, logits = np.ones((2, 5), np.float32), np.ones((2, 4), np.float32)
    y = moe(RouteSpec(k=2), spec, x, logits, None, **weights, dtype=np.float64)
    wide = {name: w.astype(np.float64) for name, w in weights.items()}
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y, moe(RouteSpec(k=2), spec, x.astype(float), logits.astype(float), None, **wide))


def test_the_error_function_is_exact_to_double_precision() -> None:
    x = np.linspace(-4, 4, 41)
    np.testing.assert_array_equal(erf(x), [math.erf(value) for value in x])
