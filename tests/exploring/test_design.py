"""The view of an FPGA design: processes, channels and, where it was simulated, the process that decides."""

from __future__ import annotations

from typing import Any

import pytest

from moec.exploring.document import SCHEMA, VERSION
from moec.exploring.page import page

from .browser import opened


def channel(name: str, producer: str, consumer: str) -> dict[str, Any]:
    ends = {"producer": f"layer.{producer}", "consumer": f"layer.{consumer}"}
    return {"name": f"layer.{name}", **ends, "bits": 32, "depth": 4, "copies": 1}


def waiting(name: str, busy: int, read: int, memory: int) -> dict[str, Any]:
    stalls = {"read_stall": read, "write_stall": 0, "memory_stall": memory}
    return {"name": f"layer.{name}", "end": 100, "busy": busy, **stalls}


CHANNELS = [channel("rows", "load", "multiply"), channel("sums", "multiply", "write")]
ESTIMATE = {
    "part": "part",
    "clock_megahertz": 300,
    "milliseconds": 0.5,
    "gigabytes_per_second": 2.0,
    "cycles": {"layers": [{"kind": "experts", "cycles": 90, "beats": 8}], "total": 90, "bound_by": "experts"},
    "resources": {"dsp": 8},
    "available": {"dsp": 32},
    "dsp_by_process": {"layer.multiply": 8},
}
PROJECT = {"name": "model", "folder": "", "report": {"node": "n", "channels": CHANNELS, "estimate": ESTIMATE}}
SIMULATION = {
    "name": "model",
    "cycles": 100,
    "estimated": 90,
    "passed": True,
    "later_cycles": [100],
    "processes": [waiting("load", 20, 0, 60), waiting("multiply", 30, 50, 0), waiting("write", 10, 80, 0)],
    "channels": [{"name": "layer.rows", "peak": 4, "words": 64}, {"name": "layer.sums", "peak": 1, "words": 64}],
}


def of_design(**sections):
    """A document of one design."""
    artifact = {"title": "design", "target": "t", **sections}
    return {"schema": SCHEMA, "version": VERSION, "title": "design", "artifacts": [artifact]}


def report(folder, project=PROJECT, **sections):
    path = folder / "report.html"
    path.write_text(page(of_design(projects=[project], **sections)), encoding="utf-8")
    return path


@pytest.fixture
def simulated(tmp_path):
    """The report of a simulated design."""
    return report(tmp_path, simulation=[SIMULATION])


def test_a_simulation_names_the_process_and_the_channel_that_decide(chromium, simulated):
    with opened(chromium, simulated) as shown:
        text = shown.inner_text(".remark")
        assert text.startswith("layer.load decides: it works for 20 cycles and waits 60 for memory")
        assert "layer.multiply waits 50 cycles to read, through layer.rows (depth 4, at most 4 full)" in text
        assert "-10% off" in shown.inner_text("main p >> nth=0")
        assert "4 (full)" in shown.inner_text("tr:has-text('layer.rows')")
        assert "full" not in shown.inner_text("tr:has-text('layer.sums')")


def test_a_process_shows_its_channels_and_its_multipliers(chromium, simulated):
    with opened(chromium, simulated) as shown:
        shown.click(".node:has-text('multiply')")
        card = shown.inner_text(".card")
        assert "8 DSP blocks, predicted" in card
        assert "rows: 32 bits, depth 4, at most 4 full, from layer.load" in card
        assert "sums: 32 bits" in card


def test_without_a_simulation_the_view_says_how_to_make_one(chromium, tmp_path):
    with opened(chromium, report(tmp_path)) as shown:
        assert "moec simulate ART --json" in shown.inner_text("main")
        assert shown.locator(".remark").count() == 0
        assert "25%" in shown.inner_text("tr:has(th:text-is('dsp'))")
        assert "The simulation failed" not in shown.inner_text("main")


def test_a_block_is_one_region_with_phases_and_copies_of_channels_are_one_row(chromium, tmp_path):
    channels = [
        {**each, **{key: each[key].removeprefix("layer.") for key in ("name", "producer", "consumer")}, "copies": 2}
        for each in CHANNELS
    ]
    cycles = {"route": 30, "products": 60, "stalls": 0, "total": 90, "bound_by": "products"}
    estimate = {**ESTIMATE, "cycles": cycles, "dsp_by_process": {"multiply": 8}}
    copies = [{"name": f"rows[{at}]", "peak": peak, "words": 32} for at, peak in enumerate((1, 3))]
    processes = [{**each, "name": each["name"].removeprefix("layer.")} for each in SIMULATION["processes"]]
    block = {**PROJECT, "report": {"node": "n", "channels": channels, "estimate": estimate}}
    simulation = {**SIMULATION, "processes": processes, "channels": copies}
    with opened(chromium, report(tmp_path, block, simulation=[simulation])) as shown:
        assert shown.inner_text("h3 >> nth=0") == "model"
        assert shown.locator(".node").count() == 3
        rows = shown.locator("tr:has(th:text-is('rows')) td").all_inner_texts()
        assert rows == ["load", "multiply", "32", "4", "3", "64"]
        assert shown.inner_text("tr:has(th:text-is('Products'))").split() == ["Products", "60", "66.7%"]
        assert shown.locator("tr:has(th:text-is('Products wait'))").count() == 0


def test_a_simulation_that_failed_says_why(chromium, tmp_path):
    failed = {"name": "model", "estimated": 90, "passed": False, "message": "deadlock: load waits", "details": {}}
    with opened(chromium, report(tmp_path, simulation=[failed])) as shown:
        assert "The simulation failed: deadlock: load waits" in shown.inner_text("main")
        assert "Not simulated" not in shown.inner_text("main")
