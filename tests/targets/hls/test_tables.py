"""Tables and pictures of designs in ``moec inspect``."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from moec.targets.hls import tables
from moec.targets.hls.design.channels import PROCESSES, channels_of
from moec.targets.hls.design.experts import BlockShape
from moec.targets.hls.hardware.parts import find_part
from moec.targets.hls.moe.exploration import explore


def printed(*renderables):
    console = Console(file=io.StringIO(), width=240)
    for renderable in renderables:
        console.print(renderable)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def exploration():
    return explore(BlockShape(16, 64, 128, 4, 2), find_part("zcu104"))


def test_the_front_with_its_choice(exploration):
    text = printed(tables.exploration_table(exploration.as_dict()))
    assert "Designs for zcu104 at 300 MHz" in text
    assert "nothing here has been synthesised" in text
    rows = [line for line in text.splitlines() if " x " in line]
    assert len(rows) == len(exploration.front)
    assert [row.strip().startswith("*") for row in rows].count(True) == 1
    assert f"{exploration.chosen.estimate.cycles.total:,}" in next(row for row in rows if "*" in row)


def test_one_design_in_detail(exploration):
    estimate = exploration.chosen.estimate
    text = printed(*tables.estimate_tables(estimate.as_dict()))
    assert f"bound by {estimate.cycles.bound_by}" in text
    assert "within a factor of two" in text
    for process in {memory.process for memory in estimate.memories}:
        assert process in text
    words = [line.split() for line in text.splitlines()]
    rows = {row[0]: [int(cell) for cell in row[1:]] for row in words if len(row) == 5 and row[0] in PROCESSES}
    assert rows["product_up"][0] == estimate.dsps["product_up"]
    for place, storage in ((1, "bram"), (2, "uram")):
        blocks = [memory.blocks for memory in estimate.memories if memory.storage == storage]
        assert sum(row[place] for row in rows.values()) == sum(blocks)


def test_the_dataflow_before_simulation(exploration):
    channels = [channel.as_dict() for channel in channels_of(exploration.chosen.estimate.design)]
    text = printed(tables.dataflow_picture(channels))
    assert text.startswith("Dataflow, not simulated")
    assert all(f"{channel['name']} " in text and f"─► {channel['consumer']}" in text for channel in channels)
    assert "at most" not in text


def test_the_dataflow_with_what_a_simulation_saw(exploration):
    channels = [channel.as_dict() for channel in channels_of(exploration.chosen.estimate.design)]
    stalls = {"read_stall": 0, "write_stall": 282, "memory_stall": 7}
    seen = {
        "cycles": 1000,
        "processes": [{"name": "read_tokens", "end": 900, "busy": 520, **stalls}],
        "channels": [
            {"name": "tokens_to_router", "depth": 32, "peak": 32, "words": 64},
            {"name": "logits", "depth": 2, "peak": 1, "words": 16},
        ],
    }
    lines = printed(tables.dataflow_picture(channels, seen)).splitlines()
    assert lines[0] == "Dataflow, timed simulation: 1,000 cycles"
    assert lines[1] == "read_tokens: busy 52%, waits 282 to write, 7 for memory"
    assert next(line for line in lines if "tokens_to_router" in line).endswith("(at most 32 of 32, full)")
    assert next(line for line in lines if "─ logits" in line).endswith("(at most 1 of 2)")
