"""Estimates against generated projects: cycles of the timed simulation, and the storage that the sources ask for."""

from __future__ import annotations

import dataclasses
import re

import pytest

from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.simulators.hls.simulator import simulate_timed
from moec.targets.hls.design.experts import Design
from moec.targets.hls.design.numbers import USUAL_STAGES, Fifos
from moec.targets.hls.hardware.cycles import MemoryPace, count_cycles
from moec.targets.hls.hardware.memories import Memory, memories_of
from moec.targets.hls.hardware.ports import masters_of
from moec.targets.hls.moe import reference

from .layers import float_block, project, quantized, tokens_for
from .lint.linter import lint
from .test_normalization import norm_of

TOKENS = 40
GATED = float_block(RouteSpec(k=2), ExpertsSpec(gate_layout="separate"), 8, 90, 128)
"""Tokens are padded; padding must not count in means and variances."""
NORM = norm_of("layer", 90)
SHARED = float_block(
    RouteSpec(k=3, score="sigmoid", normalize=True), ExpertsSpec(gate_layout="none"), 8, 96, 128, shared=1
)


@pytest.mark.nightly  # test_attention_estimate.py compares a design in every run
@pytest.mark.parametrize(
    ("block", "weight_bits", "sizes"),
    [
        (dataclasses.replace(GATED, norm=NORM), 8, {"hidden_tile": 32}),
        (SHARED, 4, {"hidden_tile": 16, "router_lanes": 2, "fifos": Fifos(weights=32)}),
    ],
    ids=["norm-gated", "shared-int4"],
)
def test_estimates_agree_with_the_simulation(block, weight_bits, sizes):
    """The memory shares cover designs bound by products and by weights; the aim is 5%."""
    integers = quantized(block, most_tokens=TOKENS, weight_bits=weight_bits)
    vectors = integers.quantized(tokens_for(block, TOKENS))
    files = project(integers, vectors, **sizes)
    loads = reference.run(integers, vectors).loads.tolist()
    bounds = set()
    apart = {master: master for master in masters_of(Design(integers.shape, **sizes))}  # a port each, as in the pace
    for share, latency in ((1, 0), (1, 64), (0.5, 64), (0.125, 64)):
        cycles = count_cycles(Design(integers.shape, **sizes), loads, MemoryPace(1 / share, latency))
        simulated = simulate_timed(files, memory_share=share, memory_latency=latency, memories=apart).cycles
        assert cycles.total == pytest.approx(simulated, rel=0.005)
        bounds.add(cycles.bound_by)
        deep = count_cycles(Design(integers.shape, **sizes), loads, MemoryPace(1 / share, latency), USUAL_STAGES)
        simulated = simulate_timed(
            files, memory_share=share, memory_latency=latency, memories=apart, pipeline_depth=USUAL_STAGES
        )
        assert deep.total == pytest.approx(simulated.cycles, rel=0.01 if latency else 0.05)
    assert bounds == {"products", "weights"}


def test_masters_on_one_port_wait_for_each_other():
    integers = quantized(dataclasses.replace(GATED, norm=NORM), most_tokens=TOKENS)
    files = project(integers, integers.quantized(tokens_for(GATED, TOKENS)), hidden_tile=32)
    apart = simulate_timed(files, memory_share=0.25).cycles
    masters = [
        line.split("m_axi_")[1].split(":")[0] for line in files["link.cfg"].decode().splitlines() if ":HP" in line
    ]
    assert len(masters) == 5
    assert simulate_timed(files, memory_share=0.25, memories=dict.fromkeys(masters, "HP0")).cycles > 1.3 * apart


@pytest.mark.parametrize("storage", ["bram", "uram"])
def test_arrays_are_bound_to_what_the_estimate_says(storage):
    integers = quantized(dataclasses.replace(GATED, norm=NORM))
    design = {"large_arrays": storage, "hidden_tile": 32}
    files = project(integers, integers.quantized(tokens_for(GATED, 1)), **design)
    assert not lint(files)
    top = files["src/model.cpp"].decode()
    for memory in memories_of(Design(integers.shape, **design)):
        if memory.name.startswith("channel ") and memory.variable:
            assert f"BIND_STORAGE variable={memory.variable} type=fifo impl={memory.implementation}" in top
        elif memory.variable:
            assert binding(files, memory) == memory.implementation, memory
    assert {memory.implementation for memory in memories_of(Design(integers.shape, **design))} >= {storage, "lutram"}


def binding(files: dict[str, bytes], memory: Memory) -> str:
    """The storage that a pragma binds an array of a process to."""
    texts = [text.decode() for name, text in files.items() if name.startswith("src/moec/")]
    start = re.compile(rf"void {memory.process}(_\w+)?\(")  # the process, or a part of it
    (text,) = (text for text in texts if start.search(text))
    pragma = re.compile(rf"BIND_STORAGE variable={memory.variable} type=ram_s2p impl=(\w+)")
    match = pragma.search(text, next(start.finditer(text)).start())
    assert match, memory
    return match[1]
