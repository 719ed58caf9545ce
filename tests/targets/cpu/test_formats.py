"""Products of weights in every format, through the lowering, against the interpreter of the same graph in float64."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import UnsupportedError
from moec.ir import interpreter
from moec.ir.dialect import ExpertsSpec, LinearSpec
from moec.ir.weights.encode import decode, encode
from moec.ir.weights.format import ELEMENTS, MX_GROUP, Elements, WeightFormat
from moec.passes.cast_weights import CastWeights
from moec.passes.framework.base import Pass, Report
from moec.passes.quantize_experts import QuantizeExperts
from moec.passes.round_activations import RoundActivations
from moec.targets.cpu.hardware.machine import Machine

from ...products import sampled, thinned
from ..node_models import node_model
from .kernel_runner import machines
from .one_node import compile_model

E, k = 5, 2
PASSES: dict[str, tuple[Pass, ...]] = {
    "bfloat16": (CastWeights("bf16"),),
    "float16": (CastWeights("fp16"),),
    "int8": (QuantizeExperts("int8"),),
    "int8 in groups": (QuantizeExperts("int8", group=64),),
    "int4 in groups of 32": (QuantizeExperts("int4", group=32),),
    "int4 in groups of 128": (QuantizeExperts("int4", group=128),),
    "int4, rows in larger groups": (QuantizeExperts("int4", group=32, activation_group=64),),
    "int4 with zero points": (QuantizeExperts("int4", group=32, zero_points=True),),
    "mxfp4": (QuantizeExperts("mxfp4"),),
    "nvfp4": (QuantizeExperts("nvfp4"),),
    "fp4": (QuantizeExperts("fp4", group=16),),
    "int3 in groups of 64": (QuantizeExperts("int3", group=64),),
    "int3 with zero points": (QuantizeExperts("int3", group=32, zero_points=True),),
    "int2 with zero points": (QuantizeExperts("int2", group=64, zero_points=True),),
    "iq4 in groups of 64": (QuantizeExperts("iq4", group=64),),
    "int2 in groups of 32": (QuantizeExperts("int2", group=32),),
    "fp8": (QuantizeExperts("fp8"),),
    "fp8 in blocks": (QuantizeExperts("fp8", group=128),),
    "fp8, activations too": (QuantizeExperts("fp8", group=128), RoundActivations()),
    "fp8 in groups of 12": (QuantizeExperts("fp8", group=12), RoundActivations(group=20)),
    "fp8 in groups of 6": (QuantizeExperts("fp8", group=6),),
    "fp8 beside integers": (QuantizeExperts("fp8", experts="0-2"), QuantizeExperts("int8")),
    "bits by expert": (
        QuantizeExperts("int2", experts="0", group=32),
        QuantizeExperts("int3", experts="1+4", group=32),
        QuantizeExperts("int4", group=32),
    ),
    "int4 and int8": (QuantizeExperts("int4", experts="0-2", group=64), QuantizeExperts("int8", group=64)),
    "int4 behind floats": (QuantizeExperts("int4", group=128, up="keep"),),
    "down in int8": (QuantizeExperts("int4", group=64, down="int8"),),
}
ROWS = [0, 1, 2, 7, 40, 230]


def specs(hidden: int) -> dict[str, ExpertsSpec]:
    return {
        "swiglu": ExpertsSpec("silu", "gate_up"),
        "separate": ExpertsSpec("silu", "separate", up_transposed=True, down_transposed=True),
        "relu": ExpertsSpec("relu", "none"),
        "sizes": ExpertsSpec("gelu", "interleaved", hidden_sizes=(hidden, 0, hidden // 2, 33, 1)),
    }


def weights(spec: ExpertsSpec, d: int, f: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)

    def stack(rows: int, columns: int, transposed: bool) -> np.ndarray:
        shape = (E, columns, rows) if transposed else (E, rows, columns)
        return (random.standard_normal(shape) / np.sqrt(columns)).astype(np.float32)

    fused = spec.gate_layout in ("gate_up", "interleaved")
    arrays = {"up": stack(2 * f if fused else f, d, spec.up_transposed), "down": stack(d, f, spec.down_transposed)}
    if spec.gate_layout == "separate":
        arrays["gate"] = stack(f, d, spec.up_transposed)
    return arrays


def feeds(tokens: int, d: int) -> dict[str, np.ndarray]:
    """Most tokens go to expert 0; one expert is never used."""
    random = np.random.default_rng(tokens)
    chosen = random.integers(0, E - 1, (tokens, k)) * (random.random((tokens, k)) < 0.5)
    return {
        "x": random.standard_normal((tokens, d)).astype(np.float32),
        "weights": random.random((tokens, k)).astype(np.float32),
        "experts": chosen.astype(np.int32),
    }


@functools.cache
def both(passes: str, spec: str, d: int, f: int, machine: str) -> Any:
    """The compiled node and the model it was compiled from."""
    parts = "Experts", feeds(1, d), weights(specs(f)[spec], d, f), specs(f)[spec]
    model = node_model(*parts)
    for one in PASSES[passes]:
        one.apply(model, Report())
    return compile_model(model, Machine.for_name(machine)), model


def check(passes: str, spec: str, d: int, f: int, machine: str) -> None:
    run, model = both(passes, spec, d, f, machine)
    for tokens in ROWS:
        case = feeds(tokens, d)
        (y,) = run(**case)
        expected = interpreter.run(model, case, dtype=np.float64)["y"]
        # Hidden values on a rounding boundary may go to either side of it: a step of 1/254 of a group's largest, in fp8
        # of 1/16 of their own.
        arithmetic = model.graph.node(-1).attributes.get("arithmetic")
        tolerance = 2e-5 if arithmetic is None else 6e-3 if arithmetic.value == "int8" else 2e-2
        np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max(initial=0)))
        error = np.linalg.norm(y - expected) / max(1e-9, np.linalg.norm(expected))
        assert error < (1e-6 if arithmetic is None else 1e-3)


@thinned("passes", [name for name in PASSES if name != "fp8 in groups of 6"], 6)
def test_formats_agree_with_the_interpreter(passes):
    check(passes, "swiglu", 128, 192, "native")


def test_groups_are_whole_steps_of_a_kernel():
    check("fp8 in groups of 12", "swiglu", 72, 40, "native")
    with pytest.raises(UnsupportedError, match=r"groups of 6, .*; kernels for CPUs read 4 inputs with one scale"):
        both("fp8 in groups of 6", "swiglu", 72, 40, "native")


EXPONENTS = ELEMENTS["mxfp4"].scales
NEW = {
    "int7": Elements(ir.DataType.INT8, 1 / 64, ir.DataType.UINT8, ELEMENTS["int6"].scales, (32,), width=7),
    "mxfp8": Elements(ir.DataType.FLOAT8E4M3FN, 1 / 8, None, EXPONENTS, (MX_GROUP,)),
}
"""Formats that no list has: integers packed in three planes, and known elements with other scales."""


@pytest.mark.parametrize("name", ["int7", pytest.param("mxfp8", marks=pytest.mark.nightly)])
def test_a_format_needs_a_row_and_nothing_else(name, monkeypatch):
    monkeypatch.setitem(ELEMENTS, name, NEW[name])
    monkeypatch.setitem(PASSES, name, (QuantizeExperts(name),))
    check(name, "relu", 64, 40, "native")
    weight = weights(specs(64)["relu"], 64, 40)["up"]
    groups = weight.reshape(-1, 32)
    error = np.abs(decode(encode(weight, WeightFormat(name, 32)), WeightFormat(name, 32)).reshape(-1, 32) - groups)
    assert (error <= 1.001 * NEW[name].error * np.abs(groups).max(-1, keepdims=True)).all()


STORED = ["bfloat16", "int8", "int4 in groups of 32", "mxfp4", "nvfp4", "int4 and int8"]
LAYOUTS = [*sampled(STORED, ["separate", "relu", "sizes"], 8), ("fp8, activations too", "sizes")]
DECODED = ["bfloat16", "float16", "int8", "int4 with zero points", "mxfp4", "iq4 in groups of 64"]
ON_MACHINES = sampled(machines(), DECODED, 20)


@pytest.mark.parametrize("passes, spec", LAYOUTS)
def test_layouts_and_sizes_per_expert(passes, spec):
    check(passes, spec, 100, 70, "native")


@pytest.mark.parametrize("machine, passes", ON_MACHINES)
def test_formats_on_every_machine(machine, passes):
    check(passes, "swiglu", 64, 66, machine)


@pytest.mark.parametrize("passes", ["int4 in groups of 32", "bfloat16", "fp8, activations too"])
def test_results_do_not_depend_on_the_number_of_threads(passes, in_pool):
    run, _ = both(passes, "swiglu", 128, 192, "native")
    case = feeds(230, 128)
    results = [in_pool(threads, functools.partial(run, **case, threads=threads)) for threads in (1, 2, 5)]
    for result in results[1:]:
        np.testing.assert_array_equal(result[0], results[0][0])


@thinned("bad", [np.nan, np.inf], 2)
@thinned("passes", ["int8", "mxfp4", "bfloat16", "fp8, activations too"], 3)
def test_what_is_not_a_number_stays_so_and_stays_in_its_row(passes, bad):
    run, _ = both(passes, "swiglu", 128, 192, "native")
    case = feeds(40, 128)
    (clean,) = run(**case)
    case["x"][7, 3] = bad
    (y,) = run(**case)
    assert not np.isfinite(y[7]).any()
    others = np.arange(40) != 7
    np.testing.assert_array_equal(y[others], clean[others])


@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16"])
def test_a_linear_with_activation(arithmetic):
    random = np.random.default_rng(5)
    constants = {
        "weight": random.standard_normal((70, 45)).astype(np.float32),
        "bias": random.standard_normal(70).astype(np.float32),
    }
    spec = LinearSpec(arithmetic=arithmetic, activation="gelu")
    passes = (CastWeights("bf16", weights="linears", minimum=1),) if arithmetic == "bfloat16" else ()
    x = random.standard_normal((2, 3, 45)).astype(np.float32)
    model = node_model("Linear", {"x": x}, constants, spec)
    for one in passes:
        one.apply(model, Report())
    (y,) = compile_model(model, Machine.host())(x=x)
    np.testing.assert_allclose(y, interpreter.run(model, {"x": x}, dtype=np.float64)["y"], rtol=1e-4, atol=1e-4)
