"""The design that is chosen, and the message where none fits."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest

from moec.common.errors import UnsupportedError
from moec.targets.hls.design.experts import BlockShape, Design
from moec.targets.hls.hardware.costs import RESOURCE_NAMES
from moec.targets.hls.hardware.parts import find_part
from moec.targets.hls.moe.exploration import Constraints, designs_of, explore, resources_of
from moec.targets.hls.moe.loads import even_loads, starving_loads

from .layers import estimated

M3VIT = BlockShape(197, 192, 768, 16, 4, normalized=False)
SMALL = BlockShape(16, 64, 128, 4, 2)
ZCU102, U280, KV260 = (find_part(name) for name in ("zcu102", "u280", "kv260"))


@pytest.fixture(scope="module")
def m3vit():
    return explore(M3VIT, ZCU102)


def test_the_chosen_design_is_about_as_fast_as_any_that_fits(m3vit):
    chosen = m3vit.chosen.estimate
    assert chosen.design.lanes_out == 32
    assert chosen.design.router_lanes > 1
    assert chosen.cycles.total <= 1.05 * min(one.estimate.cycles.total for one in m3vit.front)
    limits = Constraints().limits(ZCU102)
    assert all(getattr(chosen.resources, name) <= getattr(limits, name) for name in RESOURCE_NAMES)
    assert m3vit.chosen in m3vit.front
    assert m3vit.fitting <= m3vit.considered


def test_no_design_of_the_front_is_beaten(m3vit):
    costs = [
        (
            one.estimate.cycles.total,
            one.estimate.resources.dsp,
            one.estimate.resources.bram18,
            one.estimate.resources.lut,
        )
        for one in m3vit.front
    ]
    assert costs == sorted(costs)
    for left, right in itertools.permutations(costs, 2):
        assert not all(a <= b for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("resource", ["dsp", "bram18", "lut"])
def test_the_front_reaches_to_the_cheapest(m3vit, resource):
    cheapest = min(getattr(resources_of(design), resource) for design in designs_of(M3VIT) if not design.why_not())
    assert min(getattr(one.estimate.resources, resource) for one in m3vit.front) <= 1.05 * cheapest


def test_figures_are_those_of_the_estimate(m3vit):
    for one in (m3vit.chosen, m3vit.front[-1]):
        alone = estimated(one.estimate.design, ZCU102, even_loads(M3VIT))
        assert alone == one.estimate
        assert estimated(one.estimate.design, ZCU102, starving_loads(M3VIT)).cycles == one.starved


def test_the_same_ask_gets_the_same_answer(m3vit):
    data = json.loads(json.dumps(m3vit.as_dict()))
    assert data == explore(M3VIT, ZCU102).as_dict()
    assert [row["chosen"] for row in data["front"]].count(True) == 1


def test_loads_that_were_measured_count():
    measured = [197, 197, 197, 197] + [0] * 12
    assert explore(M3VIT, ZCU102, loads=measured).chosen.estimate.cycles.beats < 76000 / 3


@pytest.mark.parametrize(
    ("constraints", "resource"),
    [
        (Constraints(max_dsp=500), "dsp"),
        (Constraints(max_bram18=300), "bram18"),
        (Constraints(max_lut=30000), "lut"),
        (Constraints(max_flip_flops=40000), "flip_flops"),
    ],
)
def test_limits_are_kept(constraints, resource):
    actual = explore(M3VIT, ZCU102, constraints)
    limit = getattr(constraints, f"max_{resource}")
    assert all(getattr(one.estimate.resources, resource) <= limit for one in actual.front)
    assert actual.fitting < actual.considered


def test_a_users_limit_never_makes_a_part_larger():
    assert Constraints(max_dsp=10**6).limits(KV260).dsp == KV260.dsp
    assert Constraints().limits(KV260).dsp == int(0.8 * KV260.dsp)


@pytest.mark.parametrize("share", [-0.5, 0, 1.01])
def test_a_share_of_the_memory_is_more_than_none_and_not_more_than_all(share):
    with pytest.raises(UnsupportedError, match="of the memory; expected more than 0, up to 1"):
        Constraints(memory_share=share)
    assert Constraints(memory_share=1).memory_share == 1


def test_clock_and_bandwidth_reach_the_estimate():
    slow = explore(SMALL, U280, Constraints(clock_megahertz=100)).chosen.estimate
    assert slow.clock_megahertz == 100
    assert slow.ports.loaders.cycles_per_beat == 1
    assert explore(SMALL, U280, Constraints(memory_share=0.25)).chosen.estimate.ports.loaders.cycles_per_beat > 5


def test_ultra_ram_is_used_where_it_is_allowed_and_there():
    assert explore(M3VIT, KV260, Constraints(use_uram=True)).chosen.estimate.resources.uram > 0
    assert explore(SMALL, ZCU102, Constraints(use_uram=True)).considered == explore(SMALL, ZCU102).considered


def test_what_does_not_fit_says_what_is_missing_and_what_would_fit():
    with pytest.raises(UnsupportedError) as caught:
        explore(M3VIT, KV260)
    message = str(caught.value)
    assert "197 tokens of 192 through 16 experts of 768 do not fit kv260" in message
    assert "block RAMs of 18 Kbit (" in message and "more than the 230 allowed, of 288)" in message
    assert "or large arrays in UltraRAM, or the part zcu104" in message
    tokens = int(message.split("at most ")[1].split()[0])
    assert explore(dataclasses.replace(M3VIT, tokens=tokens), KV260)
    with pytest.raises(UnsupportedError):
        explore(dataclasses.replace(M3VIT, tokens=tokens + 1), KV260)


def test_limits_of_the_user_are_the_first_to_relax():
    with pytest.raises(UnsupportedError, match=r"DSPs \(.*the same part without limits of your own, or the part u50$"):
        explore(SMALL, ZCU102, Constraints(max_dsp=50))


def test_a_layer_that_is_too_large_for_all_parts():
    with pytest.raises(UnsupportedError, match="no part that moec knows is large enough"):
        explore(
            BlockShape(60000, 2048, 2048, 200, 8, gated=True, weight_bits=4), find_part("u280"), Constraints(max_dsp=1)
        )


def test_a_layer_that_no_design_can_compute():
    with pytest.raises(UnsupportedError, match="no HLS design for this MoE block: sums need 33 bits"):
        explore(dataclasses.replace(M3VIT, width=1 << 17), U280)
    assert Design(dataclasses.replace(M3VIT, width=4096)).why_not() is None
