"""Estimated cycles against the timed simulation of generated projects."""

from __future__ import annotations

import numpy as np
import pytest

from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.targets.hls import reference
from moec.targets.hls.cycles import MemoryPace, count_cycles
from moec.targets.hls.design import Design, Fifos
from moec.targets.hls.float_block import FloatBlock
from moec.targets.hls.lint import lint
from moec.targets.hls.project import Description, project_files
from moec.targets.hls.quantize import quantize
from moec.targets.hls.simulator import simulate_timed

TOKENS, WIDTH, HIDDEN, EXPERTS = 40, 96, 128, 8
ROUTERS = {
    "softmax": RouteSpec(k=2, score="softmax", normalize=False),
    "sigmoid": RouteSpec(k=3, score="sigmoid", normalize=True),
}


def generated(design_of, routing, gated, weight_bits):
    """A project with random weights, its design, and the loads of its test vectors."""
    rng = np.random.default_rng(0)

    def weights(*shape):
        return rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)

    no_bias = np.zeros((EXPERTS, HIDDEN), np.float32)
    block = FloatBlock(
        name="layer",
        routing=routing,
        experts=ExpertsSpec(activation="silu", gate_layout="separate" if gated else "none"),
        router=weights(EXPERTS, WIDTH),
        router_bias=np.zeros(EXPERTS, np.float32),
        correction_bias=None,
        up=weights(EXPERTS, HIDDEN, WIDTH),
        up_bias=no_bias,
        gate=weights(EXPERTS, HIDDEN, WIDTH) if gated else None,
        gate_bias=no_bias if gated else None,
        down=weights(EXPERTS, WIDTH, HIDDEN),
        down_bias=np.zeros((EXPERTS, WIDTH), np.float32),
    )
    tokens = rng.normal(0, 1, (TOKENS, WIDTH)).astype(np.float32)
    quantized = quantize(block, tokens, most_tokens=TOKENS, weight_bits=weight_bits)
    vectors = quantized.quantized(tokens)
    design = design_of(quantized.shape)
    loads = reference.run(quantized, vectors).loads.tolist()
    return (
        project_files(design, quantized, vectors, Description("layer", "", "", "xczu9eg-ffvb1156-2-e", 300)),
        design,
        loads,
    )


@pytest.mark.parametrize(
    ("design_of", "router", "gated", "weight_bits"),
    [
        (lambda shape: Design(shape, hidden_tile=32), "softmax", True, 8),
        (lambda shape: Design(shape, hidden_tile=16, router_lanes=2, fifos=Fifos(weights=32)), "sigmoid", False, 4),
    ],
    ids=["gated", "int4"],
)
def test_estimates_agree_with_the_simulation(design_of, router, gated, weight_bits):
    """Bound by products and by weights; the aim is 5%."""
    files, design, loads = generated(design_of, ROUTERS[router], gated, weight_bits)
    bounds = set()
    for share, latency in ((1, 0), (1, 64), (0.5, 64), (0.125, 64)):
        cycles = count_cycles(design, loads, MemoryPace(1 / share, latency))
        simulated = simulate_timed(files, memory_share=share, memory_latency=latency).cycles
        assert cycles.total == pytest.approx(simulated, rel=0.01)
        bounds.add(cycles.bound_by)
    assert bounds == {"products", "weights"}


@pytest.mark.parametrize("storage", ["bram", "uram"])
def test_large_arrays_are_bound_to_what_the_estimate_says(storage):
    files, _, _ = generated(lambda shape: Design(shape, large_arrays=storage), ROUTERS["softmax"], True, 8)
    bound = [
        line
        for text in files.values()
        for line in text.decode("latin-1").splitlines()
        if "#pragma HLS BIND_STORAGE" in line
    ]
    assert len(bound) == 3
    assert all(line.endswith(f"type=ram_s2p impl={storage}") for line in bound)
    assert not lint(files)
