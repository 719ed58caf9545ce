"""Experts with different numbers of hidden units: what the weights hold behind the last unit has no effect."""

from __future__ import annotations

import numpy as np
import pytest

from moec.ir import interpreter
from moec.ir.dialect import ExpertsSpec
from moec.passes.cast_weights import CastWeights
from moec.passes.drop_zero_neurons import DropZeroNeurons
from moec.passes.framework.base import Pass, Report
from moec.passes.quantize_experts import QuantizeExperts
from moec.targets.cpu.hardware.machine import Machine

from ...products import sampled, thinned
from ..node_models import node_model
from .one_node import compile_model, lower_node

E, d, f, k = 4, 40, 150, 2
SIZES = (150, 0, 70, 17)
SPECS = {
    "sigmoid": ExpertsSpec("sigmoid", "none", down_transposed=True),
    "swiglu": ExpertsSpec("silu", "interleaved", up_offset=1.0),
}
PASSES: dict[str, tuple[Pass, ...]] = {
    "float32": (),
    "bfloat16": (CastWeights("bf16"),),
    "int8": (QuantizeExperts("int8"),),
    "int4 in groups": (QuantizeExperts("int4", group=32),),
}


def weights(spec: ExpertsSpec) -> dict[str, np.ndarray]:
    """Biases behind an expert's last unit are so large that they would be seen."""
    random = np.random.default_rng(1)
    width = 2 * f if spec.gated else f
    down = random.standard_normal((E, f, d) if spec.down_transposed else (E, d, f))
    arrays = {"up": random.standard_normal((E, width, d)) / 6, "up_bias": random.standard_normal((E, width))}
    for bias, size in zip(arrays["up_bias"], SIZES, strict=True):
        bias[(2 if spec.gated else 1) * size :] = 100
    return {name: array.astype(np.float32) for name, array in (arrays | {"down": down}).items()}


def check(model, spec: ExpertsSpec) -> None:
    run = compile_model(model, Machine.host())
    for tokens in (0, 1, 5, 60):
        random = np.random.default_rng(tokens)
        case = {
            "x": random.standard_normal((tokens, d)).astype(np.float32),
            "weights": random.random((tokens, k)).astype(np.float32),
            "experts": random.integers(0, E, (tokens, k)).astype(np.int32),
        }
        (y,) = run(**case)
        expected = interpreter.run(model, case, dtype=np.float64)["y"]
        # Hidden values on a rounding boundary may go to either side of it.
        assert np.linalg.norm(y - expected) <= 1e-3 * np.linalg.norm(expected)


FEEDS = {
    "x": np.zeros((1, d), np.float32),
    "weights": np.zeros((1, k), np.float32),
    "experts": np.zeros((1, k), np.int32),
}


@pytest.mark.parametrize("name, passes", sampled(SPECS, PASSES, 4))
def test_what_lies_behind_the_last_unit_has_no_effect(name, passes):
    spec = ExpertsSpec(**{**vars(SPECS[name]), "hidden_sizes": SIZES})
    model = node_model("Experts", FEEDS, weights(spec), spec)
    for one in PASSES[passes]:
        one.apply(model, Report())
    check(model, spec)


def test_kernels_say_how_many_hidden_units_each_expert_has():
    """From which operations are counted: of the outputs of the first product, of the inputs of the second."""
    spec = ExpertsSpec(**{**vars(SPECS["swiglu"]), "hidden_sizes": SIZES})
    kernels = lower_node("Experts", FEEDS, weights(spec), spec).kernels.values()
    products = [record.attributes for record in kernels if "gemm" in record.name]
    assert [product["hidden_sizes"] for product in products] == [list(SIZES)] * 2
    assert [(product["inner"], product["width"]) for product in products] == [(d, f), (f, d)]


@thinned("passes", PASSES, 3)
def test_zero_neurons_are_dropped_before_weights_are_rounded(passes):
    spec, constants = SPECS["swiglu"], weights(SPECS["swiglu"])
    for expert, size in enumerate(SIZES):
        constants["down"][expert][:, np.random.default_rng(expert).permutation(f)[size:]] = 0
    model = node_model("Experts", FEEDS, constants, spec)
    for one in (DropZeroNeurons(), *PASSES[passes]):
        one.apply(model, Report())
    assert tuple(model.graph.node(-1).attributes["hidden_sizes"].value) == SIZES
    check(model, spec)
