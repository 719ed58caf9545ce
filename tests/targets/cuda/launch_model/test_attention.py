"""The formulas for attention, on a GPU with round figures: keys that are walked over, cycles, and bytes."""

from __future__ import annotations

import dataclasses

import pytest

from moec.targets.cuda.launch_model.attention import (
    AttentionSizes,
    KeyWalk,
    attention_cycles,
    attention_least_bytes,
    attention_operations,
    attention_traffic,
    walk_of,
)
from moec.targets.cuda.launch_model.cycles import LATENCY
from moec.targets.cuda.launch_model.gpus import LAUNCH_SECONDS
from moec.targets.cuda.launch_model.loops import Issued
from moec.targets.cuda.launch_model.plans import AttentionPlan
from moec.targets.cuda.launch_model.predict import LaunchFacts, predict
from moec.targets.cuda.launch_model.rows import RowSpread
from moec.targets.cuda.launch_model.traffic import Traffic

from .test_predict import GPU

MMA = AttentionPlan("bfloat16", 2, 2, 64, 64, 1, 2, "last", 32, 16, "mma", "B * G", "S", "P")
FEW = dataclasses.replace(MMA, unit="fma", rows=2, ahead=False)


@pytest.mark.parametrize(
    ("causal", "seen", "tiles", "longest"),
    [
        # Three tiles of 32 rows (16 queries) see up to 56, 72 and 88 keys, which are 4, 5 and 6 tiles of 16.
        ("last", sum(range(41, 89)), 15, 6),
        ("lengths", sum(range(41, 89)), 15, 6),
        ("first", sum(range(1, 49)), 1 + 2 + 3, 3),
        ("", 48 * 88, 3 * 6, 6),
    ],
)
def test_keys_that_are_walked_over(causal, seen, tiles, longest):
    plan, sizes = dataclasses.replace(MMA, causal=causal), AttentionSizes(5, 48, 88, 1)
    assert sizes.seen(causal) == seen
    assert walk_of(plan, sizes) == KeyWalk(5 * 3, 5 * tiles, longest)
    assert walk_of(dataclasses.replace(plan, slices=2), sizes) == KeyWalk(5 * 6, 10 * tiles, longest)
    assert attention_operations(plan, sizes) == 2 * 5 * 2 * seen * 128


def test_keys_in_parts():
    """One query with 100 keys in three parts of 34 keys at most, which are 3, 3 and 2 tiles of 16."""
    assert walk_of(FEW, AttentionSizes(1, 1, 100, 3)) == KeyWalk(3, 3 + 3 + 2 + 0, 3)
    # With two queries and one key, the first query sees no key.
    assert AttentionSizes(1, 2, 1, 1).frontier(0, "last") == 0
    assert walk_of(dataclasses.replace(FEW, causal=""), AttentionSizes(1, 0, 100, 1)) == KeyWalk(0, 0, 0)


PRODUCTS, WEIGHTS, LOADS = 2 * 32 * 16 * 128 / 1000, 32 * 16 / 16, 16 * 128 * 2 / 100
ROW = 32 * 128 * 2 / 100


def test_cycles_of_a_block():
    cycles = attention_cycles(MMA, GPU, None, 6, from_memory=False)
    assert cycles.busy == pytest.approx(
        {"tensor cores": 6 * PRODUCTS, "special functions": 6 * WEIGHTS, "L2": 6 * LOADS}
    )
    # Products, weights and four barriers take place one after another, while the next keys arrive.
    computing = PRODUCTS + WEIGHTS + 4 * 30
    assert cycles.waits == pytest.approx(6 * (computing - PRODUCTS) + 2 * 100 + ROW)
    slow = attention_cycles(MMA, GPU, None, 6, from_memory=True)
    assert slow.waits == pytest.approx(6 * (500 - PRODUCTS) + 2 * 100 + ROW)
    together = dataclasses.replace(MMA, weighs_meanwhile=True)
    assert attention_cycles(together, GPU, None, 6, from_memory=False).waits == pytest.approx(2 * 100 + ROW)
    waiting = dataclasses.replace(MMA, ahead=False, waits=3)
    assert attention_cycles(waiting, GPU, None, 6, from_memory=False).waits == pytest.approx(
        6 * (computing + 300 - PRODUCTS) + 2 * 100 + ROW
    )


def test_instructions_of_a_tile():
    issued = Issued(per_step=2000, once=4000, copying=300)
    cycles = attention_cycles(dataclasses.replace(MMA, weighs_meanwhile=True), GPU, issued, 6, from_memory=False)
    assert (cycles.busy["issue slots"], cycles.busy["copying warps"]) == (6 * 500, 6 * 600)
    assert cycles.waits == pytest.approx(2 * 100 + 1000)


def test_bytes_of_keys_that_were_there_before():
    sizes = AttentionSizes(5, 48, 88, 1)
    walk = walk_of(MMA, sizes)
    rows = 5 * 48 * 2 * 128 * 2
    found = attention_traffic(MMA, GPU, sizes, walk)
    assert found == Traffic(5 * 40 * 128 * 2, 75 * 16 * 128 * 2 + rows)
    assert attention_least_bytes(MMA, sizes) == 5 * 128 * 2 * (88 + 48 * 2)
    # If the cache is smaller than twice the keys of the sequences whose blocks run at once, keys are read from memory
    # for every tile of rows, and so are queries and results.
    small = dataclasses.replace(GPU, l2_bytes=2 * 88 * 256)
    assert attention_traffic(MMA, small, sizes, walk) == Traffic(found.l2, found.l2)


def test_bytes_of_parts():
    sizes = AttentionSizes(1, 1, 100, 3)
    found = attention_traffic(FEW, GPU, sizes, walk_of(FEW, sizes))
    keys, rows, parts = 100 * 256, 2 * 128 * 2, 2 * 3 * (64 * 4 + 8)
    assert found == Traffic(99 * 256, 8 * 16 * 256 + rows + parts)
    assert attention_traffic(FEW, GPU, dataclasses.replace(sizes, parts=1), KeyWalk(1, 7, 7)) == Traffic(
        99 * 256, keys + rows
    )


def test_the_longest_block_is_waited_for():
    """Three blocks on ten multiprocessors walk over five tiles on average, but the longest one over six."""
    sizes = AttentionSizes(1, 48, 88, 1)
    facts = LaunchFacts(blocks=3, threads=128, registers=32, shared_bytes=0, attention=sizes)
    found = predict(MMA, GPU, facts, RowSpread(0, 1), 0)
    cycles = attention_cycles(MMA, GPU, None, 6, from_memory=True)
    assert (found.blocks, found.waves, found.limit) == (3, 1, LATENCY)
    assert found.seconds == pytest.approx(cycles.together(1)[0] / 1e9 + LAUNCH_SECONDS)
    assert found.operations == attention_operations(MMA, sizes)
    assert found.roofline == pytest.approx(attention_operations(MMA, sizes) / 2e13 / found.seconds)
