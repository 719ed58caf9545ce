"""The moec operators on the CUDA target, emulated, against the numpy semantics in float64."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import moec
from moec.ir.dialect import ExpertsSpec, LinearSpec, RouteSpec
from moec.ir.semantics import experts, moe
from moec.targets.cuda.estimates import crossovers
from moec.targets.cuda.estimates.crossovers import FEW_TOKENS, block_heights

from ...products import thinned
from ..node_models import node_model

E, k = 5, 3
SIZES = {"relu": (21, 19), "sizes": (20, 19)}
"""Widths of tokens and numbers of hidden units that are odd. The default sizes allow few tokens to go pair by pair."""
SPECS = {
    "swiglu": ExpertsSpec(),
    "interleaved": ExpertsSpec("gelu", "interleaved", up_transposed=True),
    "separate": ExpertsSpec("gelu_tanh", "separate", down_transposed=True),
    "clamped": ExpertsSpec("silu", "up_gate", alpha=1.702, limit=1.0, up_offset=1.0),
    "relu": ExpertsSpec("relu", "none", weight_on_input=True),
    "identity_experts": ExpertsSpec("tanh", "none", identity_experts=2),
    "sizes": ExpertsSpec("silu", "gate_up", hidden_sizes=(19, 3, 8, 1, 12)),
}
BIASED = {"separate", "clamped", "interleaved"}


def weights_of(name: str) -> dict[str, np.ndarray]:
    spec, random = SPECS[name], np.random.default_rng(3)
    d, f = SIZES.get(name, (20, 24))

    def stack(rows: int, columns: int, transposed: bool) -> np.ndarray:
        shape = (E, columns, rows) if transposed else (E, rows, columns)
        return (random.standard_normal(shape) / np.sqrt(columns)).astype(np.float32)

    separate = spec.gate_layout == "separate"
    hidden = 2 * f if spec.gated and not separate else f
    arrays = {"up": stack(hidden, d, spec.up_transposed), "down": stack(d, f, spec.down_transposed)}
    if separate:
        arrays["gate"] = stack(f, d, spec.up_transposed)
    if name in BIASED:
        arrays["up_bias"] = random.standard_normal((E, hidden), dtype=np.float32)
        arrays["down_bias"] = random.standard_normal((E, d), dtype=np.float32)
    return arrays


def choices(T: int, most: int) -> list[np.ndarray]:
    """Expert ids [T, k]: distinct experts, one expert for all pairs, some pairs without an expert, and all without."""
    random = np.random.default_rng(T)
    distinct = np.argsort(random.random((T, most)), axis=1)[:, :k]
    return [distinct, np.full((T, k), 2), random.integers(-1, most, (T, k)), np.full((T, k), -1)]


@thinned("name", SPECS, 4)
def test_experts(emulated, name):
    spec, weights, d = SPECS[name], weights_of(name), SIZES.get(name, (20, 24))[0]
    feeds = {"x": np.zeros((1, d), np.float32), "weights": np.zeros((1, k), np.float32)}
    run = emulated(node_model("Experts", {**feeds, "experts": np.zeros((1, k), np.int32)}, weights, spec))
    random = np.random.default_rng(0)
    for T in (0, 1, FEW_TOKENS, FEW_TOKENS + 1, 64):
        for ids in choices(T, E + spec.identity_experts):
            x, shares = random.standard_normal((T, d), dtype=np.float32), random.random((T, k), dtype=np.float32)
            y = run({"x": x, "weights": shares, "experts": ids.astype(np.int32)})["y"]
            expected = experts(spec, x, shares, ids, **weights, dtype=np.float64)
            np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.nightly
@thinned(
    ("dtype", "target", "kernel"),
    [
        (np.float16, "cuda", "moe_grouped_gemm_mma"),
        (ml_dtypes.bfloat16, "cuda", "moe_grouped_gemm_mma"),
        (ml_dtypes.bfloat16, "cuda:sm_90a", "moe_grouped_gemm_wgmma"),
        (ml_dtypes.bfloat16, "cuda:sm_100a", "moe_grouped_gemm_umma"),
    ],
    3,
)
def test_block_on_tensor_cores(without_nvcc, dtype, target, kernel):
    """Odd sizes, which are padded with zeros, at numbers of tokens for every height of a block."""
    random = np.random.default_rng(1)
    inner, hidden, count = 125, 59, 3
    up = (random.standard_normal((count, 2 * hidden, inner)) / 11).astype(dtype)
    down = (random.standard_normal((count, inner, hidden)) / 8).astype(dtype)
    route, spec = RouteSpec(k=2, normalize=True), ExpertsSpec()
    feeds = {"x": np.zeros((1, inner), dtype), "logits": np.zeros((1, count), dtype)}
    model = moec.compile(node_model("MoE", feeds, {"up": up, "down": down}, route, spec), target=target, emulate=True)
    assert kernel in model.kernels
    heights = block_heights(count, 2, (16, 64, 128), FEW_TOKENS + 1)
    sizes = [1, 0, FEW_TOKENS + 1, *(tokens.least for _, tokens in heights[1:])]
    for T in sizes:
        x = random.standard_normal((T, inner)).astype(dtype)
        logits = random.standard_normal((T, count)).astype(dtype)
        y = model.run({"x": x, "logits": logits})["y"].astype(np.float64)
        expected = moe(route, spec, x, logits, None, up, down, dtype=np.float64)
        np.testing.assert_allclose(y, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (np.float32, "float32"),
        (np.float16, "float16"),
        pytest.param(ml_dtypes.bfloat16, "bfloat16", marks=pytest.mark.nightly),
    ],
)
def test_results_of_pairs_have_the_type_of_tokens_of_16_bits(program_of, dtype, stored):
    feeds = {"x": np.zeros((1, 16), dtype), "logits": np.zeros((1, E), dtype)}
    weights = {"up": np.zeros((E, 32, 16), dtype), "down": np.zeros((E, 16, 16), dtype)}
    kernels = program_of(node_model("MoE", feeds, weights, RouteSpec(k=2), ExpertsSpec())).kernels
    assert {kernel.attributes["out_dtype"] for kernel in kernels if "grouped" in kernel.name} == {stored}


@thinned("one_launch", [FEW_TOKENS, 40], 2)
def test_dispatch_in_one_launch_and_in_three(monkeypatch, program_of, emulated, one_launch):
    """One launch serves up to 40 or 16 tokens. With 40 the program has both ways, and the number of tokens decides.
    With 16 it has only three launches, because so few tokens go pair by pair."""
    monkeypatch.setattr(crossovers, "_ONE_LAUNCH_PAIRS", one_launch * k)
    spec, weights, d = SPECS["swiglu"], weights_of("swiglu"), 20
    feeds = {"x": np.zeros((1, d), np.float32), "weights": np.zeros((1, k), np.float32)}
    model = node_model("Experts", {**feeds, "experts": np.zeros((1, k), np.int32)}, weights, spec)
    program = program_of(model)
    names = {kernel.name for kernel in program.kernels}
    assert "moe_scatter_pairs" in names and ("moe_dispatch" in names) == (one_launch > FEW_TOKENS)
    run, random = emulated(program), np.random.default_rng(0)
    for T in (1, 40, 41):
        x, shares = random.standard_normal((T, d), dtype=np.float32), random.random((T, k), dtype=np.float32)
        ids = random.integers(-1, E, (T, k)).astype(np.int32)
        y = run({"x": x, "weights": shares, "experts": ids})["y"]
        np.testing.assert_allclose(y, experts(spec, x, shares, ids, **weights, dtype=np.float64), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transposed", [False, True])
def test_linear(emulated, transposed):
    d = 21
    random = np.random.default_rng(2)
    weight, bias = random.standard_normal((9, d), dtype=np.float32), random.standard_normal(9, dtype=np.float32)
    spec = LinearSpec(activation="silu", transposed=transposed)
    constants = {"weight": np.ascontiguousarray(weight.T) if transposed else weight, "bias": bias}
    run = emulated(node_model("Linear", {"x": np.zeros((1, d), np.float32)}, constants, spec))
    x = random.standard_normal((4, d), dtype=np.float32)
    total = x.astype(np.float64) @ weight.T + bias
    np.testing.assert_allclose(run({"x": x})["y"], total / (1 + np.exp(-total)), rtol=1e-4, atol=1e-4)


@pytest.mark.nightly
def test_experts_that_choose_tokens(emulated):
    random, (inner, hidden) = np.random.default_rng(5), (20, 24)
    up = random.standard_normal((E, 2 * hidden, inner), dtype=np.float32) / 4
    down = random.standard_normal((E, inner, hidden), dtype=np.float32) / 5
    bias = random.standard_normal(E).astype(np.float32)
    routing = RouteSpec(k=E, selection="expert_choice", capacity=2, normalize=True)
    feeds = {"x": np.zeros((1, inner), np.float32), "logits": np.zeros((1, E), np.float32)}
    constants = {"up": up, "down": down, "correction_bias": bias}
    run = emulated(node_model("MoE", feeds, constants, routing, ExpertsSpec()))
    for T in (0, 1, FEW_TOKENS, 40):
        x, logits = (random.standard_normal((T, size), dtype=np.float32) for size in (inner, E))
        expected = moe(routing, ExpertsSpec(), x, logits, bias, up, down, dtype=np.float64)
        np.testing.assert_allclose(run({"x": x, "logits": logits})["y"], expected, rtol=1e-4, atol=1e-4)
