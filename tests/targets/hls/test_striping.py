"""Weights striped over AXI masters give the same results in fewer cycles; each beat uses its memory's master."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.simulators.hls.simulator import simulate_timed
from moec.targets.hls.design.experts import BlockShape, Design
from moec.targets.hls.design.numbers import MOST_STAGES, USUAL_STAGES
from moec.targets.hls.design.striping import stripe_up
from moec.targets.hls.hardware.cycles import count_cycles
from moec.targets.hls.hardware.parts import find_part
from moec.targets.hls.hardware.ports import connect, masters_of
from moec.targets.hls.moe import reference
from moec.targets.hls.moe.exploration import explore

from .layers import float_block, in_groups, project, quantized, tokens_for
from .lint.linter import lint

GATED = float_block(RouteSpec(2), ExpertsSpec(gate_layout="separate"), 4, 128, 128)
GROUPED = in_groups(float_block(RouteSpec(2), ExpertsSpec(), 4, 128, 128, shared=1), 4, 32)
OLMOE = BlockShape(1, 2048, 1024, 64, 8, gated=True, normalized=False)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("block", "sizes", "faster"),
    [
        (GATED, {"hidden_tile": 64, "router_lanes": 16, "masters_up": 8, "masters_down": 4}, 2.0),
        pytest.param(
            *(GROUPED, {"hidden_tile": 128, "router_lanes": 16, "masters_up": 2, "masters_down": 2}, 1.3),
            marks=pytest.mark.nightly,
        ),
    ],
    ids=["gated", "groups-shared-int4"],
)
def test_results_are_the_same_and_come_earlier(block, sizes, faster):
    """With one token, weights are used once. Cycles are those of the estimate."""
    integers = quantized(block)
    vectors = integers.quantized(tokens_for(block, 1))
    files = project(integers, vectors, **sizes)
    assert not lint(files)
    design = Design(integers.shape, **sizes)
    ports = connect(find_part("u55c"), masters_of(design), 300)
    settings = {"memory_share": ports.share, "total_share": ports.total_share, "memories": ports.of}
    simulated = simulate_timed(files, **settings, pipeline_depth=USUAL_STAGES, watch_dependences=True)
    assert "PASS" in simulated.output
    deep = simulate_timed(files, **settings, pipeline_depth=MOST_STAGES, watch_dependences=True)
    assert "PASS" in deep.output
    loads = reference.run(integers, vectors).loads.tolist()
    assert count_cycles(design, loads, ports.loaders, USUAL_STAGES).total == pytest.approx(simulated.cycles, rel=0.03)
    plain = dataclasses.replace(design, masters_up=1, masters_down=1)
    before = connect(find_part("u55c"), masters_of(plain), 300)
    assert count_cycles(plain, loads, before.loaders, USUAL_STAGES).total > faster * simulated.cycles


def test_a_beat_comes_through_the_master_of_its_memory():
    design = Design(quantized(GATED).shape, hidden_tile=32, masters_up=8, masters_down=4)
    tile = design.parameter_beats_up + design.weight_beats_up
    beats = np.arange((8 + 4 * design.tiles * tile) * 64, dtype=np.int64).astype(np.uint8)
    beats.reshape(-1, 64)[:, :4] = np.arange(len(beats) // 64, dtype="<u4").view(np.uint8).reshape(-1, 4)
    files = stripe_up(design, beats.tobytes())
    assert list(files) == [f"up_{master}.bin" for master in range(8)]
    numbers = [np.frombuffer(data, "<u4").reshape(-1, 16)[:, 0] for data in files.values()]
    # The table has eight beats; parameters of 32 rows go to 4 memories; weights follow.
    assert numbers[0][:12].tolist() == [*range(8), 8, 12, 16, 24], numbers[0][:12]
    assert numbers[4][:2].tolist() == [8 + design.parameter_beats_up + 4, 8 + design.parameter_beats_up + 12]
    assert sorted(np.concatenate(numbers)) == list(range(len(beats) // 64))


@pytest.mark.parametrize(("board", "masters", "share"), [("u55c", (16, 8), 0.6), ("zcu102", (2, 1), 0.6)])
def test_as_many_masters_as_there_are_ports(board, masters, share):
    """A token of OLMoE uses the weights of 8 of 64 experts once, so the design is about as fast as the memory."""
    part = find_part(board)
    chosen = explore(OLMOE, part, loads=[1] * 8 + [0] * 56).chosen.estimate
    assert (chosen.design.masters_up, chosen.design.masters_down) == masters
    assert len(set(chosen.ports.of.values())) <= part.memory.ports
    assert chosen.gigabytes_per_second > share * part.memory.gigabytes_per_second


def test_memories_of_fewer_masters_are_refused():
    assert "masters" in (Design(OLMOE, 8, 8, 16, 8, 4, 2).why_not() or "")


def test_an_array_of_channels_has_a_depth():
    integers = quantized(GATED)
    files = project(integers, integers.quantized(tokens_for(GATED, 1)), hidden_tile=32, masters_up=2, masters_down=2)
    top = files["src/model.cpp"].decode().replace("#pragma HLS STREAM variable=beats_up depth=128\n", "")
    findings = lint({**files, "src/model.cpp": top.encode()})
    assert [finding.rule for finding in findings] == ["named-channels"]
    assert "channels beats_up[0], beats_up[1] have no depth" in findings[0].message
