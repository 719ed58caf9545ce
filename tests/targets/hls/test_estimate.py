"""Estimated cycles against recorded timed simulations, and resources against counts by hand."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import re
from types import SimpleNamespace

import pytest

from moec.targets.hls.design.channels import PROCESSES, channels_of
from moec.targets.hls.design.experts import BlockShape, Design
from moec.targets.hls.hardware.arithmetic import dsps_of, logic_luts
from moec.targets.hls.hardware.cycles import Loader, MemoryPace, _run, count_cycles, in_series, tokens_in
from moec.targets.hls.hardware.logic import multiplier_dsps
from moec.targets.hls.hardware.memories import block_rams, memories_of, ultra_rams
from moec.targets.hls.hardware.parts import find_part
from moec.targets.hls.moe.exploration import resources_of
from moec.targets.hls.moe.loads import even_loads, starving_loads

from .layers import estimated

LIBRARY = importlib.resources.files("moec.targets.hls") / "library"
M3VIT = BlockShape(197, 192, 768, 16, 4, normalized=False)
M3VIT_LOADS = [64, 42, 48, 45, 54, 53, 42, 49, 41, 54, 43, 48, 54, 47, 58, 46]
EDGE_LOADS = [13, 12, 15, 13, 14, 21, 15, 14, 16, 18, 22, 14, 21, 14, 21, 15]


@pytest.mark.parametrize(
    ("design", "loads", "cycles_per_beat", "simulated"),
    [
        (Design(BlockShape(16, 192, 256, 4, 2, normalized=False), 32, 32), [7, 8, 10, 7], 1, 4959),
        (Design(BlockShape(129, 192, 384, 16, 2, normalized=False)), EDGE_LOADS, 1, 85413),
        (Design(M3VIT), M3VIT_LOADS, 1, 469077),
        (Design(M3VIT, 32, 32), M3VIT_LOADS, 1, 127445),
        # The simulation of these figures took as long for a router weight as for a beat of them.
        (Design(M3VIT, 32, 32), M3VIT_LOADS, 2, 131899 - 3072),
        (Design(M3VIT, 32, 32), M3VIT_LOADS, 3, 142841 - 2 * 3072),
        (Design(M3VIT, 32, 32), M3VIT_LOADS, 4, 180687 - 3 * 3072),
    ],
)
def test_cycles_of_timed_simulations(design, loads, cycles_per_beat, simulated):
    """The aim is 5%; smaller designs are further off, because constants weigh more."""
    # The router of these simulations loaded one weight per cycle.
    router = design.shape.experts * design.width
    simulated -= router - router // design.router_lanes
    cycles = count_cycles(design, loads, MemoryPace(cycles_per_beat))
    assert cycles.total == pytest.approx(simulated, rel=0.003)


SMALL = Design(BlockShape(16, 64, 128, 4, 2), hidden_tile=32)
FEW_TOKENS = BlockShape(4, 96, 128, 8, 2, gated=True, normalized=False)
NORMED = dataclasses.replace(FEW_TOKENS, norm="layer")
TWO_EXPERTS = dataclasses.replace(NORMED, experts=2)


@pytest.mark.parametrize(
    ("design", "loads", "pace", "stages", "simulated"),
    [
        (SMALL, [7, 6, 10, 9], MemoryPace(1, 0), 0, 1470),
        (Design(FEW_TOKENS, hidden_tile=32), [1, 1], MemoryPace(1, 0), 20, 1696),
        (Design(FEW_TOKENS, hidden_tile=32), [1, 1], MemoryPace(1, 0), 60, 2856),
        (Design(FEW_TOKENS, hidden_tile=32), [1, 1], MemoryPace(4, 64), 20, 4668),
        (Design(NORMED, hidden_tile=16, router_lanes=2), [1, 1], MemoryPace(1, 0), 60, 4082),
        (Design(NORMED, hidden_tile=16, router_lanes=2), [1, 1], MemoryPace(1, 64), 20, 3030),
        (Design(TWO_EXPERTS, hidden_tile=32, router_lanes=8), [1, 1], MemoryPace(1, 64), 20, 2099),
        (Design(TWO_EXPERTS, hidden_tile=32, router_lanes=8), [1, 1], MemoryPace(2, 64), 60, 3896),
    ],
)
def test_cycles_of_small_designs(design, loads, pace, stages, simulated):
    """Recorded timed simulations. Pipelines run empty after each tile, so a few tokens take mostly stages."""
    loads = [*loads, *[0] * (design.shape.experts - len(loads))]
    assert count_cycles(design, loads, pace, stages).total == pytest.approx(simulated, rel=0.015)


def test_phases_add_up_and_name_the_bottleneck():
    cycles = count_cycles(Design(M3VIT), M3VIT_LOADS)
    assert cycles.products == 197 * 4 * 2 * 192 * 768 // (2 * 16 * 16)
    assert cycles.bound_by == "products"
    assert count_cycles(Design(M3VIT, 32, 32), M3VIT_LOADS, MemoryPace(4)).bound_by == "weights"
    assert count_cycles(Design(dataclasses.replace(M3VIT, hidden=64)), M3VIT_LOADS).bound_by == "products"
    assert count_cycles(Design(dataclasses.replace(M3VIT, hidden=64), router_lanes=1), M3VIT_LOADS).bound_by == "router"


def test_memory_latency_delays_every_job_that_nothing_hides():
    design, loads = Design(M3VIT), [1] * 4 + [0] * 12
    quick, slow = (count_cycles(design, loads, MemoryPace(1, latency)) for latency in (0, 64))
    assert slow.stalls - quick.stalls == pytest.approx(4 * design.tiles * 64, rel=0.05)


def test_a_job_waits_for_places_in_the_channel_and_the_next_one_behind_it():
    """Ten beats go through a channel of four that is not read before cycle 100, so the last six arrive after that."""
    loader = Loader(depth=4, pace=MemoryPace(1, 0))
    assert loader.arrival(10, announced=0, taken_from=100) == 110
    assert loader.arrival(3, announced=0, taken_from=100) == 106 + 3


def test_a_job_that_fits_into_the_channel_waits_for_nobody():
    loader = Loader(depth=4, pace=MemoryPace(2, 7))
    assert loader.arrival(4, announced=0, taken_from=100) == 104
    assert loader.arrival(1, announced=0, taken_from=0) == 7 + 1 + 3 * 2 + 7 + 1


@pytest.mark.parametrize(
    ("jobs", "start", "end"),
    [
        ([(2, 1)], 11, 45),  # the second product waits for an item of the first: 11 + 11, and 20 + 3
        ([(2, 30)], 11, 59),  # it waits for its own weights: 33 + 3, and 20 + 3
        ([(2, 30), (2, 4)], 11, 82),  # the next job starts after the first, at 59
        # 40 of its beats do not come during the steps before, which end at 56 + 3: 59 + 40 + 3
        ([(2, 30), (2, 60)], 11, 125),
    ],
)
def test_jobs_take_the_cycles_that_are_counted_by_hand(jobs, start, end):
    """Jobs are tokens and beats of the second matrix. A token takes 10 steps. Pipelines have three stages, and channels
    hold all weights; the five beats of the first matrix arrive by cycle 8."""
    fifos = SimpleNamespace(weights=100, items=1)
    sizes = {"hidden_in_chunks": 2, "hidden_depth": 6, "hidden_out_chunks": 3, "item_cycles": 10, "job_beats_up": 5}
    design = SimpleNamespace(**sizes, fifos=fifos)
    assert _run(design, jobs, MemoryPace(1, 0), stages=3) == (start, end)


def test_pipelines_are_counted_on_the_longest_way_through_the_channels():
    channels = channels_of(Design(M3VIT))
    assert in_series(channels, "read_router", "router") == 2
    assert in_series(channels, "read_tokens", "product_down") == 10  # by the router; dispatching has three pipelines
    by_hand = [channel for channel in channels if channel.consumer != "router"]
    assert in_series(by_hand, "read_tokens", "product_down") == 4
    with_norm = channels_of(Design(dataclasses.replace(M3VIT, norm="layer")))
    assert in_series(with_norm, "read_inputs", "router") == 5
    assert [in_series(each, "combine", "write_tokens") for each in (channels, with_norm)] == [4, 5]


def test_a_call_without_tokens_reads_the_router():
    assert count_cycles(Design(M3VIT), [0] * 16).total == 16 * 192 // 4 + 16 + 2  # a cycle for each of two processes


@pytest.mark.parametrize("changes", [{"gated": True}, {"weight_bits": 4}])
def test_what_changes_the_weights_changes_their_cycles(changes):
    usual = count_cycles(Design(M3VIT), M3VIT_LOADS)
    changed = count_cycles(Design(dataclasses.replace(M3VIT, **changes)), M3VIT_LOADS)
    assert changed.products == usual.products
    assert changed.weights == pytest.approx(usual.weights * (2 if "gated" in changes else 0.5), rel=0.05)


def test_shared_experts_work_for_every_token():
    shared = dataclasses.replace(M3VIT, shared=1)
    cycles = count_cycles(Design(shared), [*M3VIT_LOADS, 197])
    assert cycles.products == count_cycles(Design(M3VIT), M3VIT_LOADS).products * 5 // 4


@pytest.mark.parametrize(
    ("shape", "loads", "message"),
    [
        (M3VIT, [1] * 15, "15 loads; expected one for each of 16"),
        (M3VIT, [1] * 15 + [2], "none of tokens that go to 4 different experts"),
        (M3VIT, [4] + [0] * 15, "none of tokens"),
        (dataclasses.replace(M3VIT, shared=1), [1] * 16 + [3], "none of tokens"),
    ],
)
def test_loads_that_no_call_has(shape, loads, message):
    with pytest.raises(ValueError, match=message):
        count_cycles(Design(shape), loads)


@pytest.mark.parametrize("tokens", [0, 1, 3, 4, 5, 197])
def test_expected_loads_are_those_of_the_tokens(tokens):
    shape = dataclasses.replace(M3VIT, tokens=tokens, shared=1)
    for loads in (even_loads(shape), starving_loads(shape)):
        assert tokens_in(shape, loads) == tokens
    assert max(even_loads(shape)[:16]) - min(even_loads(shape)[:16]) <= 1


def test_starving_experts_are_slower_than_any_that_were_tried():
    design, pace = Design(M3VIT, 32, 32), MemoryPace(4)
    usual = [count_cycles(design, loads, pace).total for loads in (M3VIT_LOADS, even_loads(M3VIT))]
    alone = count_cycles(design, [197] * 4 + [0] * 12, pace).total
    assert alone < min(usual)
    assert max(usual) < count_cycles(design, starving_loads(M3VIT), pace).total


@pytest.mark.parametrize(
    ("left", "right", "dsps"),
    [
        (8, 16, 1),
        (27, 17, 1),
        (27, 18, 1),
        (18, 27, 1),
        (28, 17, 2),
        (27, 19, 2),
        (34, 17, 2),
        (19, 35, 2),
        (53, 35, 4),
    ],
)
def test_dsps_of_a_product(left, right, dsps):
    assert multiplier_dsps(left, right) == multiplier_dsps(right, left) == dsps


def test_dsps_by_process():
    assert dsps_of(Design(M3VIT)) == {
        "router": 16 * 4,
        "select": 4 * 2 + 4 * 2,
        "product_up": 128 + 16,
        "product_down": 128 + 16,
        "combine": 16,
    }
    gated = dsps_of(Design(dataclasses.replace(M3VIT, gated=True)))
    assert gated["product_up"] == 2 * (128 + 16) + 2 * 16
    sigmoid = dataclasses.replace(M3VIT, scoring="sigmoid", biased_choice=True)
    assert dsps_of(Design(sigmoid))["select"] == 5 * 2
    narrow = dataclasses.replace(M3VIT, width=16)  # logits of 28 bits: less the largest one, 30, which no DSP has
    assert dsps_of(Design(narrow))["select"] == 4 * 2 + 4 * 2


def test_logic_by_hand():
    """The LUTs of 8 pairs of rows with 16 inputs, four products of which are summed in a word, with sums of 24 bits in
    the first product and 26 in the second."""
    up, down = 8 * 4 * (432 + 7 * 24) // 3, 8 * (4 * (432 + 7 * 26) // 3)
    hidden, result = 16 * 16, 16 * 26
    router, lists, choice = 16 * (32 + 3 * 40), 16 * (4 * 18 - 12), 4 * 23 + 3 * (34 + 32 + 8) + 32 * 7
    rest = router + lists + choice + 34 * 34 + 16 * (35 + 16) + 3000 + 4 * 1100
    assert logic_luts(Design(M3VIT)) == up + down + hidden + result + rest
    assert resources_of(Design(M3VIT)).flip_flops == round(1.3 * resources_of(Design(M3VIT)).lut)
    gated = dataclasses.replace(M3VIT, gated=True)
    assert logic_luts(Design(gated)) == 2 * up + down + 3 * hidden + result + rest


@pytest.mark.parametrize(
    ("bits", "words", "blocks"),
    [
        (36, 512, 1),
        (37, 512, 2),
        (36, 513, 2),
        (18, 1024, 1),
        (9, 2048, 1),
        (1, 16384, 1),
        (128, 2364, 20),
        (512, 128, 15),
    ],
)
def test_block_rams_of_an_array(bits, words, blocks):
    assert block_rams(bits, words) == blocks


@pytest.mark.parametrize(("bits", "words", "blocks"), [(72, 4096, 1), (73, 4096, 2), (72, 4097, 2), (128, 2364, 2)])
def test_ultra_rams_of_an_array(bits, words, blocks):
    assert ultra_rams(bits, words) == blocks


def test_memories_of_the_example():
    actual = {(memory.process, memory.name): memory for memory in memories_of(Design(M3VIT))}
    assert actual["product_up", "tokens"].bram18 == 20
    assert actual["product_down", "partial sums"].bram18 == 60
    assert actual["combine", "combined results"].bram18 == 80
    assert actual["dispatch", "lists of tokens"].bram18 == 16
    assert actual["load_up", "channel beats_up"].bram18 == 15
    weights = actual["product_up", "weights"]
    assert (weights.copies, weights.bits, weights.words, weights.bram18) == (8, 512, 48, 0)
    assert weights.luts == 8 * 74 * 8
    assert actual["router", "weights"].copies == 64
    assert actual["select", "scores"].copies == 3  # two lanes a copy: four slots, and one for all experts in turn


def test_large_arrays_move_to_ultra_ram():
    usual, moved = resources_of(Design(M3VIT)), resources_of(Design(M3VIT, large_arrays="uram"))
    assert (usual.uram, moved.uram) == (0, 2 + 6 + 8)
    assert usual.bram18 - moved.bram18 == 20 + 60 + 80
    assert (usual.dsp, usual.lut) == (moved.dsp, moved.lut)


def test_every_channel_connects_two_processes():
    channels = channels_of(Design(M3VIT))
    assert len({channel.name for channel in channels}) == len(channels)
    for channel in channels:
        assert PROCESSES.index(channel.producer) < PROCESSES.index(channel.consumer)


@pytest.mark.parametrize(("struct", "words"), [("job_t", "jobs_"), ("item_t", "items_")])
def test_channels_are_as_wide_as_the_words_of_the_library(struct, words):
    text = (LIBRARY / "moec_types.h").read_text()
    fields = re.search(rf"struct {struct} {{(.*?)}};", text, re.DOTALL)
    expert = re.search(r"typedef (\S+) expert_t;", text)
    assert fields is not None and expert is not None
    code = re.sub(r"//.*", "", fields[1]).replace("expert_t", expert[1])
    flags = sum(names.count(",") + 1 for names in re.findall(r"bool ([^;]*);", code))
    bits = sum(int(width) for width in re.findall(r"ap_uint<(\d+)> \w+;", code)) + flags
    assert {channel.bits for channel in channels_of(Design(M3VIT)) if channel.name.startswith(words)} == {bits}


def test_an_estimate_is_plain_data():
    actual = estimated(Design(M3VIT), find_part("zcu102"), M3VIT_LOADS, clock_megahertz=200)
    data = json.loads(json.dumps(actual.as_dict()))
    assert data["milliseconds"] == pytest.approx(data["cycles"]["total"] / 200e3)
    assert data["gigabytes_per_second"] == pytest.approx(actual.cycles.beats * 64 / actual.milliseconds / 1e6)
    assert data["resources"]["dsp"] == sum(data["dsp_by_process"].values())
    assert data["resources"]["bram18"] == sum(m["blocks"] for m in data["memories"] if m["storage"] == "bram")
