"""Estimates against what is generated: cycles of the timed simulation, and storage that the sources ask for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.targets.hls import reference
from moec.targets.hls.cycles import MemoryPace, count_cycles
from moec.targets.hls.design import Design, Fifos
from moec.targets.hls.lint import lint
from moec.targets.hls.normalization import FloatNorm
from moec.targets.hls.simulator import simulate_timed

from .layers import float_block, project, quantized, tokens_for

TOKENS = 40
GATED = float_block(RouteSpec(k=2), ExpertsSpec(gate_layout="separate"), 8, 96, 128)
NORM = FloatNorm("layer", np.ones(96, np.float32), np.zeros(96, np.float32), epsilon=1e-5)
SHARED = float_block(
    RouteSpec(k=3, score="sigmoid", normalize=True), ExpertsSpec(gate_layout="none"), 8, 96, 128, shared=1
)


@pytest.mark.parametrize(
    ("block", "weight_bits", "sizes"),
    [
        (dataclasses.replace(GATED, norm=NORM), 8, {"hidden_tile": 32}),
        (SHARED, 4, {"hidden_tile": 16, "router_lanes": 2, "fifos": Fifos(weights=32)}),
    ],
    ids=["norm-gated", "shared-int4"],
)
def test_estimates_agree_with_the_simulation(block, weight_bits, sizes):
    """Bound by products and by weights; the aim is 5%."""
    integers = quantized(block, most_tokens=TOKENS, weight_bits=weight_bits)
    vectors = integers.quantized(tokens_for(block, TOKENS))
    files = project(integers, vectors, **sizes)
    loads = reference.run(integers, vectors).loads.tolist()
    bounds = set()
    for share, latency in ((1, 0), (1, 64), (0.5, 64), (0.125, 64)):
        cycles = count_cycles(Design(integers.shape, **sizes), loads, MemoryPace(1 / share, latency))
        simulated = simulate_timed(files, memory_share=share, memory_latency=latency).cycles
        assert cycles.total == pytest.approx(simulated, rel=0.005)
        bounds.add(cycles.bound_by)
    assert bounds == {"products", "weights"}


@pytest.mark.parametrize("storage", ["bram", "uram"])
def test_large_arrays_are_bound_to_what_the_estimate_says(storage):
    integers = quantized(GATED)
    files = project(integers, integers.quantized(tokens_for(GATED, 1)), large_arrays=storage)
    lines = [line for text in files.values() for line in text.decode("latin-1").splitlines()]
    bound = [line for line in lines if "#pragma HLS BIND_STORAGE" in line]
    assert len(bound) == 3
    assert all(line.endswith(f"type=ram_s2p impl={storage}") for line in bound)
    assert not lint(files)
