"""Timelines: recorded runs as a section, and the view with lanes, keys and a table."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json

import pytest

import moec
from moec.common.errors import MoecError
from moec.exploring.document import SCHEMA, VERSION
from moec.exploring.page import page
from moec.exploring.subject import Subject
from moec.exploring.timeline import timeline
from moec.runtime.manifest import digest_of
from moec.tools.tracing.trace import Counter, Trace, TracedCall, TracedRun

from .browser import NARROW, opened

CALLS = [
    TracedCall("shape_func", 1, 1),
    TracedCall("gather", 10, 2, "Gather", ["node_embedding"], 64),
    TracedCall("gemm", 20, 4, "MatMul", ["node_linear"], 8000, 16000),
    TracedCall("gemm", 30, 6, "MatMul", ["node_linear_3"], 8000, 16000),
]
COUNTERS = [
    Counter("Weights, mapped", [(0, 1 << 20)]),
    Counter("Tensors", [(10, 1024), (20, 4096), (40, 0)]),
    Counter("Caches", [(0, 0), (20, 2048)]),
]
RUN = TracedRun("Prompt of 8 tokens", 40, 20, CALLS, COUNTERS)
STEP = TracedRun("Decode step after 8 tokens", 8, 0.5, CALLS[:1], [])


@pytest.fixture(scope="module")
def subject(char_lm):
    """The artifact of char_lm with a trace of its own."""
    opened = Subject.open(char_lm)
    trace = Trace(digest_of(opened.artifact.manifest), "cpu", "a processor", 2, [RUN, STEP])
    return dataclasses.replace(opened, trace=trace)


def test_a_section_has_sums_by_kernel(subject):
    section = timeline(subject)
    assert (section["is_own"], section["foreign"]) == (True, [])
    prompt, step = section["cases"]
    assert (prompt["microseconds"], prompt["kernel_microseconds"], prompt["unrecorded"]) == (40, 13, 20)
    first, second, third = prompt["kernels"]
    assert first == {"name": "gemm", "op": "MatMul", "calls": 2, "microseconds": 10, "median": 5, "share": 10 / 13}
    assert [second["name"], third["name"], third["op"]] == ["gather", "shape_func", None]
    assert prompt["calls"][2]["node"] == "node_linear" and prompt["calls"][0]["node"] is None
    assert step["counters"] == []


def test_a_section_is_as_the_schema_says(subject):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schema = json.loads((importlib.resources.files("moec.exploring") / "page" / "schema.json").read_text("utf-8"))
    whole = {"$ref": "#/$defs/timeline", "$defs": schema["$defs"]}
    jsonschema.Draft202012Validator(whole).validate(json.loads(json.dumps(timeline(subject))))


def test_kernels_of_another_artifact_are_named(subject):
    run = dataclasses.replace(RUN, calls=[*CALLS, TracedCall("other", 38, 1, "Abs")])
    section = timeline(dataclasses.replace(subject, trace=Trace("0", "cpu", "a processor", 1, [run])))
    assert (section["is_own"], section["foreign"]) == (False, ["other"])


def test_without_a_trace_there_is_no_section(subject):
    assert timeline(dataclasses.replace(subject, trace=None)) is None


def test_explore_refuses_another_file(char_lm, tmp_path):
    (tmp_path / "trace.json").write_text('{"traceEvents": []}')
    with pytest.raises(MoecError, match="is not a trace of moec"):
        moec.explore(char_lm, tmp_path / "page.html", trace=tmp_path / "trace.json")
    assert not (tmp_path / "page.html").exists()


def part(title: str, kind: str, layer: int | str, nodes: list[str]) -> dict[str, object]:
    return {"title": title, "kind": kind, "layer": layer, "nodes": nodes}


PARTS = [
    part("Embedding", "embedding", "input", ["node_embedding"]),
    part("Attention", "attention", 0, ["node_linear"]),
    part("MoE block", "moe", 1, ["node_linear_3"]),
]


@pytest.fixture(scope="module")
def shown(subject, tmp_path_factory):
    """The page of a trace alone, with the kernel ``gemm``."""
    kernel = {"name": "gemm", "op": "MatMul", "computes": "", "forms": [], "nodes": [], "architecture": ""}
    sections = {"timeline": timeline(subject), "layers": {"parts": PARTS}, "kernels": [kernel]}
    artifact = {"title": "a", "target": "cpu", **sections}
    path = tmp_path_factory.mktemp("timeline") / "page.html"
    document = {"schema": SCHEMA, "version": VERSION, "title": "a", "artifacts": [artifact]}
    path.write_text(page(document), encoding="utf-8")
    return path


WITHOUT_TITLES = """every => every.map(text =>
    [...text.childNodes].filter(node => node.nodeName !== "title").map(node => node.textContent).join(""))"""


def test_lanes_layers_counters_and_the_table(chromium, shown):
    with opened(chromium, shown, "#timeline") as window:
        labels = window.locator("svg.timeline text")
        texts = labels.evaluate_all(WITHOUT_TITLES)
        for text in ("Sizes of tensors", "Embedding", "Attention", "MoE block", "Layer 0", "Tensors, at most 4 KiB"):
            assert text in texts
        assert "kernels take 13 µs" in window.inner_text("main") and "Weights, mapped: 1 MiB" in window.inner_text(
            "main"
        )
        assert "76.9%" in window.inner_text("tbody tr >> nth=0")
        assert "the machine was busy" not in window.inner_text("main")
        window.click("text=Decode step after 8 tokens")
        window.wait_for_url("**#timeline/1")
        window.wait_for_selector("tbody tr:only-child:has-text('shape_func')")
        assert "the machine was busy" in window.inner_text("main")


def test_without_a_trace_the_map_says_how_to_make_one(chromium, report):
    with opened(chromium, report, "#map") as window:
        assert "Timeline" not in window.inner_text("nav")
        window.get_by_label("Time", exact=True).check()
        assert "moec bench ART --trace T.json" in window.inner_text("main")


def test_calls_are_found_by_pointer_and_keys(chromium, shown):
    with opened(chromium, shown, "#timeline") as window:
        box = window.locator("svg.timeline").bounding_box()
        lane = window.locator("svg.timeline text:text-is('Attention')").bounding_box()
        place = (box["x"] + box["width"] * 5 / 13, lane["y"] + lane["height"] + 8)  # 3 to 7 of 13 µs
        window.mouse.move(*place)
        assert "gemm: 4 µs from 20 µs on" in window.inner_text(".pointed")
        assert "2.00 GB/s" in window.inner_text(".pointed") and "Layer 0: Attention" in window.inner_text(".pointed")
        window.mouse.move(place[0], lane["y"] + 60)
        assert "gemm" not in window.inner_text(".pointed")
        window.focus(".timeline-frame")
        window.keyboard.press("ArrowRight")
        window.wait_for_function("document.querySelector('.pointed').innerText.trim() !== ''")
        window.keyboard.press("ArrowRight")
        window.wait_for_selector(".pointed:has-text('gather')")
        ticks = "svg.timeline .axis text"
        before = window.locator(ticks).all_text_contents()
        window.keyboard.press("w")
        assert window.locator(ticks).all_text_contents() != before
        window.keyboard.press("0")
        assert window.locator(ticks).all_text_contents() == before
        window.evaluate("scrollTo(0, 0)")
        window.mouse.click(*place)
        window.wait_for_url("**#kernel/gemm")


def test_a_narrow_page_does_not_overflow(chromium, shown):
    with opened(chromium, shown, "#timeline", NARROW) as window:
        assert window.evaluate("document.documentElement.scrollWidth") == NARROW[0]
        assert window.locator("svg.timeline").bounding_box()["width"] <= NARROW[0]
