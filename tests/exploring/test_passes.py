"""The section of passes: every stage can be made again, and the view shows what each pass did."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess

import pytest

from moec.exploring.passes import passes
from moec.exploring.subject import Subject
from moec.ir.text import parse_model, print_model

from .browser import NARROW, opened
from .test_edits import applied

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def explored(char_lm):
    """char_lm, and its section of passes."""
    opened_subject = Subject.open(char_lm)
    return opened_subject, passes(opened_subject)


def place_of(section, name):
    return next(at for at, stage in enumerate(section["stages"]) if stage["name"] == name)


def test_lines_after_every_pass_are_those_of_the_artifact(explored):
    described, section = explored
    stages = [stage for stage in described.description["stages"] if stage["changed"]]
    lines = []
    for stage, shown in zip(stages, section["stages"], strict=True):
        lines = applied(lines, shown["edits"])
        text = print_model(parse_model(described.artifact.text(stage["file"])), types=False)
        printed = [line.removeprefix("   ").removesuffix(",") for line in text.splitlines()]
        assert [section["lines"][line] for line in lines] == [
            line for line in printed[6:] if line not in (">", "{", "}")
        ]
        assert shown["nodes"] == sum(section["nodes"][line] is not None for line in lines)


def test_the_rules_of_a_pass_are_its_docstring_and_the_import_has_none(explored):
    _, section = explored
    assert "1. " in section["stages"][place_of(section, "fuse-route-dispatch")]["rules"]
    assert section["stages"][0]["rules"] == "The model as the frontend read it."


def test_the_view_shows_what_a_pass_changed(chromium, report, explored):
    _, section = explored
    with opened(chromium, report, f"#passes/{place_of(section, 'raise-moe')}") as page:
        assert page.inner_text("main h2") == "raise-moe"
        assert "moec.Experts" in page.inner_text(".difference .added >> nth=4")
        assert page.locator(".graph-pane .selected").count() == 1
        page.keyboard.press("]")
        page.wait_for_selector("main h2:has-text('remove-dead-nodes')")
        assert page.locator(".difference .removed").count() > 40
        assert page.locator(".difference .added").count() == 0


def test_a_node_keeps_its_place_from_pass_to_pass(chromium, report, explored):
    _, section = explored
    first = place_of(section, "raise-moe")
    with opened(chromium, report, f"#passes/{first}/sum_2.y") as page:
        place = page.locator(".graph-pane .selected").get_attribute("transform")
        page.keyboard.press("]")
        page.wait_for_selector("main h2:has-text('remove-dead-nodes')")
        assert page.locator(".graph-pane .selected").get_attribute("transform") == place


QUICK = """async () => {
    for (const key of "]]]") {
        document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
        for (let step = 0; step < 9; step++) await null; // the page is drawn again; no event of the browser comes
    }
}"""


def test_keys_that_follow_at_once_go_on_from_the_latest_pass(chromium, report, explored):
    _, section = explored
    with opened(chromium, report, "#passes/0") as page:
        page.evaluate(QUICK)
        page.wait_for_selector(f"main h2:has-text('{section['stages'][3]['name']}')")
        assert page.evaluate("location.hash") == "#passes/3"


def test_an_address_of_no_pass_shows_one_that_is_there(chromium, report):
    with opened(chromium, report, "#passes/999/none", NARROW) as page:
        assert page.locator("main h2").count() == 1


LAYOUT = """
import { layout } from "./explorer/src/layout.js";
const count = 2000;
const node = (at, inputs) => [`n${at}`, { id: `n${at}`, outputs: [`v${at}`], inputs }];
const before = new Map(Array.from({ length: count }, (_, at) => node(at, at ? [`v${at - 1}`, `v${at >> 1}`] : [])));
const after = new Map([...before].filter((_, at) => at % 3));
const turned = new Map([node(1, ["v2"]), node(2, [])]);
const start = performance.now();
const plan = layout([before, after, turned]);
const time = performance.now() - start;
console.log(JSON.stringify({ time, rows: plan.rows, places: [...plan.places] }));
"""


def test_a_layout_of_2000_nodes_has_a_place_for_each_and_edges_lead_down():
    if shutil.which("node") is None:
        pytest.skip("node is not installed: the layout was not tested on its own")
    done = subprocess.run(["node", "--input-type=module", "-e", LAYOUT], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    places = {name: (place["row"], place["column"]) for name, place in result["places"]}
    assert len(set(places.values())) == 2000
    assert all(places[f"n{at}"][0] > places[f"n{at >> 1}"][0] for at in range(1, 2000) if at != 2)
