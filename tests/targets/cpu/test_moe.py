"""The MoE block's kernels against the numpy semantics in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moec.common.errors import UnsupportedError
from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.ir.semantics import experts, moe
from moec.targets.cpu.hardware.machine import MACHINES, Machine, host_has

from ...products import thinned
from .one_node import compile_node, lower_node

E, d, f, k = 6, 45, 37, 3
SPECS = {
    "swiglu": ExpertsSpec(),
    "geglu_interleaved": ExpertsSpec("gelu", "interleaved", up_transposed=True),
    "geglu_tanh_separate": ExpertsSpec("gelu_tanh", "separate", down_transposed=True),
    "clamped_swiglu": ExpertsSpec("silu", "interleaved", alpha=1.702, limit=1.0, up_offset=1.0),
    "up_gate": ExpertsSpec("sigmoid", "up_gate", up_transposed=True, down_transposed=True),
    "relu": ExpertsSpec("relu", "none"),
    "relu2": ExpertsSpec("relu2", "none", up_transposed=True),
    "tanh": ExpertsSpec("tanh", "none"),
    "weight_on_input": ExpertsSpec("silu", "gate_up", weight_on_input=True),
    "limited_output": ExpertsSpec("silu", "gate_up", output_limit=0.05),
    "identity_experts": ExpertsSpec("identity", "none", identity_experts=2),
}
BIASED = {"clamped_swiglu", "geglu_tanh_separate", "tanh", "up_gate"}


def weights_of(spec: ExpertsSpec, biased: bool, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Random expert weights in the layout the spec asks for."""
    random = np.random.default_rng(3)

    def stack(rows: int, columns: int, transposed: bool) -> np.ndarray:
        shape = (E, columns, rows) if transposed else (E, rows, columns)
        return (random.standard_normal(shape) / np.sqrt(columns)).astype(dtype)

    fused = spec.gated and spec.gate_layout != "separate"
    hidden = 2 * f if fused else f
    arrays = {"up": stack(hidden, d, spec.up_transposed), "down": stack(d, f, spec.down_transposed)}
    if spec.gate_layout == "separate":
        arrays["gate"] = stack(f, d, spec.up_transposed)
    if biased:
        arrays["up_bias"] = random.standard_normal((E, hidden)).astype(dtype)
        arrays["down_bias"] = random.standard_normal((E, d)).astype(dtype)
        if spec.gate_layout == "separate":
            arrays["gate_bias"] = random.standard_normal((E, f)).astype(dtype)
    return arrays


@functools.cache
def compiled(name: str, machine: Machine | None = None):
    feeds = {
        "x": np.zeros((1, d), np.float32),
        "weights": np.zeros((1, k), np.float32),
        "experts": np.zeros((1, k), np.int32),
    }
    return compile_node("Experts", feeds, weights_of(SPECS[name], name in BIASED), SPECS[name], machine=machine)


@st.composite
def routed(draw: st.DrawFn, most: int = E) -> dict[str, np.ndarray]:
    """Tokens with experts: distinct ones, all the same one, only some of them, or dropped pairs among them."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    T = draw(st.sampled_from([0, 1, 5, 64]))
    kind = draw(st.sampled_from(["distinct", "one", "few", "dropped", "none"]))
    chosen = {
        "distinct": np.argsort(random.random((T, most)), axis=1)[:, :k],
        "one": np.full((T, k), draw(st.integers(0, E - 1))),
        "few": random.integers(0, 2, (T, k)),
        "dropped": random.integers(-1, most, (T, k)),
        "none": np.full((T, k), -1),
    }[kind]
    return {
        "x": random.standard_normal((T, d)).astype(np.float32),
        "weights": random.random((T, k)).astype(np.float32),
        "experts": chosen.astype(np.int32),
    }


def expected(name: str, case: dict[str, np.ndarray]) -> np.ndarray:
    return experts(SPECS[name], **case, **weights_of(SPECS[name], name in BIASED), dtype=np.float64)


@thinned("name", SPECS, 3)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_experts_agree_with_the_semantics(name: str, data: st.DataObject) -> None:
    case = data.draw(routed(E + SPECS[name].identity_experts))
    (y,) = compiled(name)(**case)
    np.testing.assert_allclose(y, expected(name, case), rtol=1e-5, atol=2e-5)


@pytest.mark.skipif(not host_has(MACHINES["avx2"].features), reason="this processor has no AVX2")
@settings(max_examples=10, deadline=None)
@given(case=routed())
def test_avx2_agrees_with_the_semantics(case: dict[str, np.ndarray]) -> None:
    (y,) = compiled("swiglu", MACHINES["avx2"])(**case)
    np.testing.assert_allclose(y, expected("swiglu", case), rtol=1e-5, atol=2e-5)


@settings(max_examples=10, deadline=None)
@given(case=routed())
def test_every_number_of_threads_gives_the_same_bits(in_pool: Callable, case: dict[str, np.ndarray]) -> None:
    run = compiled("swiglu")
    results = [in_pool(threads, lambda: run(threads=threads, **case)[0]) for threads in (1, 2, 3)]  # noqa: B023
    assert all(np.array_equal(results[0], result) for result in results)


def test_a_token_does_not_depend_on_the_others() -> None:
    random = np.random.default_rng(5)
    case = {
        "x": random.standard_normal((100, d)).astype(np.float32),
        "weights": random.random((100, k)).astype(np.float32),
        "experts": random.integers(0, E, (100, k)).astype(np.int32),
    }
    (together,) = compiled("swiglu")(**case)
    for token in (0, 41, 99):
        (alone,) = compiled("swiglu")(**{name: array[token : token + 1] for name, array in case.items()})
        assert np.array_equal(alone[0], together[token])


@thinned("dtype", [ml_dtypes.bfloat16, np.float16], 2)
def test_narrow_floats_are_summed_in_float32(dtype: Any) -> None:
    random = np.random.default_rng(7)
    route_spec, spec = RouteSpec(k, normalize=True), SPECS["swiglu"]
    arrays = weights_of(spec, biased=True, dtype=dtype)
    x, logits = random.standard_normal((9, d)).astype(dtype), random.standard_normal((9, E)).astype(dtype)
    (y,) = compile_node("MoE", {"x": x, "logits": logits}, arrays, route_spec, spec)(x=x, logits=logits)
    reference = moe(route_spec, spec, x, logits, None, **arrays).astype(np.float32)
    assert y.dtype == dtype
    step = float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(y.astype(np.float32), reference, rtol=2 * step, atol=2 * step)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), T=st.sampled_from([0, 1, 5, 150]), ties=st.booleans())
def test_moe_routes_and_computes(seed: int, T: int, ties: bool) -> None:
    random = np.random.default_rng(seed)
    x, logits = random.standard_normal((T, d)).astype(np.float32), random.standard_normal((T, E)).astype(np.float32)
    logits = np.round(logits) if ties else logits
    (y,) = compiled_moe()(x=x, logits=logits)
    reference = moe(MOE_SPEC, SPECS["swiglu"], x, logits, None, **weights_of(SPECS["swiglu"], False), dtype=np.float64)
    np.testing.assert_allclose(y, reference, rtol=1e-5, atol=2e-5)


MOE_SPEC = RouteSpec(k, normalize=True)


@functools.cache
def compiled_moe():
    feeds = {"x": np.zeros((1, d), np.float32), "logits": np.zeros((1, E), np.float32)}
    return compile_node("MoE", feeds, weights_of(SPECS["swiglu"], False), MOE_SPEC, SPECS["swiglu"])


def test_weights_computed_at_run_time_are_refused() -> None:
    arrays = weights_of(SPECS["swiglu"], False)
    feeds = {
        "x": np.zeros((1, d), np.float32),
        "weights": np.zeros((1, k), np.float32),
        "experts": np.zeros((1, k), np.int32),
    }
    with pytest.raises(UnsupportedError, match=r"block.*weight up: is an input of the model"):
        lower_node("Experts", {**feeds, "up": arrays["up"]}, {"down": arrays["down"]}, SPECS["swiglu"])


def test_records_say_what_was_chosen_and_why() -> None:
    feeds = {"x": np.zeros((1, d), np.float32), "logits": np.zeros((1, E), np.float32)}
    lowered = lower_node("MoE", feeds, weights_of(SPECS["swiglu"], False), MOE_SPEC, SPECS["swiglu"])
    assert set(lowered.kernels) == {
        "moe_route", "moe_dispatch", "moe_gather", "moe_grouped_gemm_gated", "moe_grouped_gemm", "moe_combine",
    }  # fmt: skip
    for record in lowered.kernels.values():
        assert record.nodes == ["block"]
        assert record.computes
        assert sum(candidate.chosen for candidate in record.candidates) == 1
        assert all(candidate.reason for candidate in record.candidates)
    gated, plain = lowered.kernels["moe_grouped_gemm_gated"].candidates
    assert gated.chosen
    assert "register tile of" in gated.reason
    assert not plain.eligible
    assert "the gate would need a product" in plain.reason
