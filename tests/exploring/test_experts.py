"""The sections of experts and pairs, and the view that shows them."""

from __future__ import annotations

import importlib
import itertools
import pathlib
from types import SimpleNamespace

import numpy as np
import pytest

from moec.exploring.expert_facts import expert_facts
from moec.exploring.expert_use import uses_of
from moec.exploring.experts import experts, pairs
from moec.exploring.page import page as page_of
from moec.exploring.subject import Subject
from moec.inspect.one_expert import find_expert
from moec.ir.dialect import has_experts
from moec.ir.weight_operands import weight_inputs
from moec.ir.weights.format import ELEMENTS, WeightFormat
from moec.placing.plan import ExpertPlan
from moec.profiles.file import write_profile
from moec.profiles.head import DataPiece, Head, LayerEntry

from .browser import NARROW, opened
from .large import EXPERTS, LAYERS, large_document
from .test_page import HOSTILE, of

experts_module = importlib.import_module("moec.exploring.experts")

LARGEST_BYTES = 10 << 20


@pytest.fixture(scope="module")
def profile(char_lm, tmp_path_factory) -> pathlib.Path:
    """A profile of char_lm: 100 tokens, of which expert e saw e + 1, and no other format than int2/32."""
    blocks = Subject.open(char_lm).description["moe_blocks"]
    layers = [
        LayerEntry(f"{at:016x}", "experts", block["name"], 64, 100, 8, 2, 48, ("gate", "up", "down"))
        for at, block in enumerate(blocks)
    ]
    arrays = {
        "count": np.arange(1, 9),
        "gate_sum": np.arange(1, 9) * 0.5,
        "energy": np.full(8, 4.0),
        "error/int2/32": np.full((8, 3), 1.0),
        "pairs": np.arange(64).reshape(8, 8),
    }
    source = Subject.open(char_lm).description["provenance"]["source"]
    head = Head({"name": "m", "sha256": source["sha256"]}, [DataPiece(name="d", tokens=100)], "O2", ["int2/32"], layers)
    path = tmp_path_factory.mktemp("profile") / "p.moeprof"
    named = {f"{layer.key}/{name}": array for layer in layers for name, array in arrays.items()}
    write_profile(path, head, named.items())
    return path


def test_without_a_profile_there_are_formats_and_sizes_alone(char_lm):
    section = experts(Subject.open(char_lm))
    assert section["no_profile"] == "no profile was given" and section["profile"] is None
    assert pairs(Subject.open(char_lm)) is None
    blocks = Subject.open(char_lm).description["moe_blocks"]
    for layer, block in zip(section["layers"], blocks, strict=True):
        assert layer["experts"] == expert_facts(block)
        assert {expert["bytes"] for expert in layer["experts"]} == {3 * 64 * 48 * 4}


def test_facts_are_those_of_the_terminal(char_lm):
    blocks = Subject.open(char_lm).description["moe_blocks"]
    shown = experts(Subject.open(char_lm))["layers"][1]["experts"][5]
    assert find_expert(blocks, "1:5") == {"layer": blocks[1]["name"], **shown}


def test_a_profile_adds_tokens_weights_and_pairs(char_lm, profile):
    section = experts(Subject.open(char_lm, profile=profile))
    assert section["profile"] == {"file": "p.moeprof", "model": "m", "data": [{"name": "d", "tokens": 100}]}
    layer = section["layers"][0]
    assert layer["tokens"] == 100
    assert [expert["tokens"] for expert in layer["experts"]] == list(range(1, 9))
    assert {expert["weight"] for expert in layer["experts"]} == {0.5}
    assert {expert["error"] for expert in layer["experts"]} == {0.0}  # float32 is what the model has
    assert pairs(Subject.open(char_lm, profile=profile))[1][:3] == [[0], [8, 9], [16, 17, 18]]


def test_errors_are_those_of_each_expert_s_own_formats(char_lm, profile):
    uses = uses_of(Subject.open(char_lm, profile=profile)).layers[0]
    fact = {"expert": 3, "number": 3, "with": [], "formats": {"up": "int2/32", "down": "float32"}}
    shown = uses.of(fact, 8, 8)
    assert shown["errors"] == {"up": round(np.sqrt(2 / 4), 4), "down": 0.0}  # gate and up are one projection
    assert shown["error"] == shown["errors"]["up"]
    unknown = uses.of({**fact, "formats": {"up": "int3/32", "down": "float32"}}, 8, 8)
    assert unknown["errors"]["up"] is None and unknown["error"] is None
    merged = uses.of({**fact, "with": [4]}, 8, 7)
    assert merged["errors"] == {} and merged["tokens"] == 4
    assert uses.of(fact, 6, 5) == {}


def test_a_profile_of_another_model_gives_nothing(char_lm, profile, monkeypatch):
    other = Subject.open(char_lm, profile=profile)
    monkeypatch.setitem(other.description["provenance"]["source"], "sha256", "0" * 64)
    section = experts(other)
    assert section["no_profile"] == "the profile is of another model, m"
    assert "tokens" not in section["layers"][0]["experts"][0]


def test_formats_are_read_as_they_are_printed():
    options = itertools.product(ELEMENTS, (0, 16, 32, 64, 128), (False, True), (False, True), (0, 256))
    printed = set()
    for fields in options:
        try:
            form = WeightFormat(*fields)
        except ValueError:
            continue
        assert WeightFormat.parse(str(form)) == form
        printed.add(str(form))
    assert {"float32", "int4/32z", "mxfp4", "int2/16/256m"} <= printed
    for text in ("", "int9", "int4/7x", "int4/٣"):
        with pytest.raises(ValueError):
            WeightFormat.parse(text)


def test_bits_of_a_weight_count_scales_of_parts_of_groups():
    assert WeightFormat("int4", 32).bits_per_weight(48) == 4 + 16 * 2 / 48
    assert WeightFormat("int8").bits_per_weight(64) == 8 + 32 / 64
    assert WeightFormat("float16").bits_per_weight(64) == 16


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The report of a large model."""
    path = tmp_path_factory.mktemp("large") / "report.html"
    path.write_text(page_of(large_document()), encoding="utf-8")
    return path


def test_a_large_report_is_small(large):
    assert large.stat().st_size <= LARGEST_BYTES


def test_an_expert_with_two_bits_is_found_in_three_clicks(chromium, large):
    with opened(chromium, large, "#map") as page:
        page.get_by_role("link", name="Experts").click()
        picture = page.locator("svg.experts-map")
        assert picture.get_attribute("aria-label") == "Layers and their experts"
        assert picture.locator("path").count() < 20  # not one for each of 6144 cells
        page.get_by_role("link", name="Layer 3", exact=True).click()
        rows = page.locator("table:has-text('Experts of Layer 3') tbody tr")
        rows.filter(has_text="up int2/32, down int2/32").first.locator("a").click()
        card = page.locator("section.card")
        assert "int2/32" in card.inner_text() and "of its output" in card.inner_text()


QUICK = """keys => {
    for (const key of keys) document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
}"""
"""Press keys before anything is drawn again."""


def test_cells_are_hit_by_pointer_and_by_keys(chromium, large):
    with opened(chromium, large, "#experts") as page:
        box = page.locator("svg.experts-map").bounding_box()
        side = (box["width"] - 44) / EXPERTS
        assert abs((box["height"] - 24) / LAYERS - side) < 0.01
        page.mouse.click(box["x"] + 40 + 17.5 * side, box["y"] + 20 + 3.5 * side)
        page.wait_for_selector(".card h3:has-text('Layer 3, expert 17')")
        page.locator("svg.experts-map").focus()
        for key, cell in (("ArrowDown", "Layer 4, expert 17"), ("ArrowRight", "Layer 4, expert 18")):
            page.keyboard.press(key)
            page.wait_for_selector(f"main [role=status]:has-text('{cell}')")
        page.keyboard.press("Enter")
        page.wait_for_selector(".card h3:has-text('Layer 4, expert 18')")


def test_keys_that_follow_at_once_move_from_the_latest_cell(chromium, large):
    with opened(chromium, large, "#experts/3/17") as page:
        page.locator("svg.experts-map").focus()
        page.evaluate(QUICK, ["ArrowRight", "ArrowRight", "ArrowDown"])
        page.wait_for_selector("main [role=status]:has-text('Layer 4, expert 19')")
        page.evaluate(QUICK, ["Home", "ArrowRight", "Enter"])
        page.wait_for_selector(".card h3:has-text('Layer 4, expert 1')")


def test_pairs_of_a_layer_are_shown(chromium, large):
    with opened(chromium, large, "#experts/3", NARROW) as page:
        page.wait_for_selector("h3:has-text('Selected together')")
        assert page.locator("svg[aria-label^='Pairs of experts of Layer 3']").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW[0]


def test_without_a_profile_the_view_says_how_to_make_one(chromium, report):
    with opened(chromium, report, "#experts") as page:
        assert "moec profile MODEL --data DATA" in page.inner_text("main")
        assert page.locator("fieldset").count() == 0


def test_hostile_names_and_addresses_are_text(chromium, tmp_path):
    expert = {"expert": 0, "number": 0, "with": [], "why": HOSTILE, "hidden_units": 1, "formats": {HOSTILE: HOSTILE}}
    loss = {"pass_name": HOSTILE, "weight_error": 0, "output_error": 0}
    layer = {"name": HOSTILE, "top_k": 1, "tokens": None, "losses": [loss]}
    section = {"layers": [{**layer, "experts": [{**expert, "bits": 1, "bytes": 1}]}], "profile": None}
    path = tmp_path / "report.html"
    path.write_text(page_of(of(HOSTILE, experts={**section, "no_profile": HOSTILE})), encoding="utf-8")
    with opened(chromium, path, "#experts", NARROW) as page:
        page.on("dialog", lambda dialog: pytest.fail(f"the page ran {dialog.message}"))
        for address in ("#experts", "#experts/0", "#experts/0/0", "#experts/<img>/1", "#experts/0/<img>"):
            page.goto(f"{path.as_uri()}{address}")
            page.wait_for_selector("main h2")
            assert page.locator("main img").count() == 0
            assert page.evaluate("document.documentElement.scrollWidth") <= NARROW[0]


def test_experts_that_do_not_fit_are_read_when_selected(char_lm, monkeypatch):
    streamed = Subject.open(char_lm)
    streamed.artifact.manifest.plan = ExpertPlan((), resident=100 + 3 * 10)
    nodes = [node for node in streamed.graph if has_experts(node)]
    specs = [SimpleNamespace(name=list(weight_inputs(node).values())[-1].name, experts=8) for node in reversed(nodes)]
    plan = SimpleNamespace(streamed=specs, fitting=lambda room: [(0, 5), (1, 2), (0, 1)][: (room - 100) // 10])
    monkeypatch.setattr(experts_module, "stream_plan", lambda artifact: plan)
    first, second = (layer["experts"] for layer in experts(streamed)["layers"])
    assert [expert["memory"] for expert in second] == [{1: "kept", 5: "kept"}.get(at, "read") for at in range(8)]
    assert [expert["expert"] for expert in first if expert["memory"] == "kept"] == [2]
