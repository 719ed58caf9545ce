"""Questions of a stranger: the paths in docs/explorer.md lead to their answers, by real clicks."""

from __future__ import annotations

import copy
import functools
import pathlib
import re

import pytest

from moec.exploring.page import write_page

from .browser import opened
from .large import large_document
from .test_design import PROJECT, SIMULATION, of_design

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "explorer.md"
MOST_CLICKS = 4


def questions() -> list[list[str]]:
    """Rows of the table in the documentation: question, kind of report, clicks and answer."""
    _, _, table = PAGE.read_text(encoding="utf-8").partition("| question |")
    rows = [line for line in table.splitlines()[2:] if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def one_artifact(char_document):
    return char_document


def two_artifacts(char_document):
    other = copy.deepcopy(char_document["artifacts"][0])
    other["title"] = "other"
    other["texts"]["gather"]["levels"][2]["text"] += "one more line\n"
    return {**char_document, "artifacts": [*char_document["artifacts"], other]}


def several_formats(_):
    document = large_document(layers=8, experts=32)
    message = "layer 7 looks like experts, but its router has no top-k"
    remark = {"pass_name": "raise-moe", "subject": "block 7", "message": message, "severity": "warning"}
    document["artifacts"][0]["remarks"] = [remark]
    document["artifacts"][0]["kernels"][0]["candidates"] = []
    return document


def a_design(_):
    return of_design(projects=[PROJECT], simulation=[SIMULATION])


REPORTS = {
    "one artifact": one_artifact,
    "two artifacts": two_artifacts,
    "a model in several formats": several_formats,
    "an FPGA design": a_design,
}


@pytest.fixture(scope="module")
def report_of(char_document, tmp_path_factory):
    """Write the report of a kind, once."""

    @functools.cache
    def write(kind: str) -> pathlib.Path:
        path = tmp_path_factory.mktemp("questions") / "report.html"
        write_page(REPORTS[kind](char_document), path)
        return path

    return write


def follow(page, step: str) -> None:
    """Take one step: type a text, choose an entry of a list, or click what has exactly this name; entries of the
    navigation have their key after it."""
    (name,) = re.findall("`([^`]+)`", step)
    if step.startswith("type"):
        page.wait_for_selector("dialog input:focus")
        page.keyboard.type(name)
        return
    exact = re.compile(rf"^{re.escape(name)}( \S)?$")
    choice = page.locator(f"main select:has(option:text-is({name!r}))")
    roles = [page.get_by_role(role, name=exact) for role in ("link", "button", "radio")]
    in_dialog = page.get_by_role("dialog").get_by_role("link", name=name)
    functools.reduce(lambda one, other: one.or_(other), (*roles, choice, in_dialog)).first.wait_for(state="attached")
    found = next((place for place in roles if place.count()), None)
    if page.get_by_role("dialog").count():
        page.get_by_role("dialog").get_by_role("link", name=name).first.click()
    elif found is not None:
        found.first.click()
    else:
        choice.first.select_option(label=name)


@pytest.mark.parametrize(("question", "kind", "clicks", "answer"), questions(), ids=lambda cell: cell[:40])
def test_clicks_lead_from_a_question_to_its_answer(chromium, report_of, question, kind, clicks, answer):
    steps = re.findall(r"(?:type )?`[^`]+`", clicks)
    assert 1 <= len(steps) <= MOST_CLICKS
    (text,) = re.findall("`([^`]+)`", answer)
    with opened(chromium, report_of(kind)) as page:
        for step in steps:
            follow(page, step)
        if answer.startswith("marks in"):
            page.wait_for_selector(f"section:has(h3:text-is({text!r})) .marked")
        else:
            page.locator("main").get_by_text(text).locator("visible=true").first.wait_for(timeout=5000)


def test_a_path_to_nothing_is_found(chromium, report_of):
    with opened(chromium, report_of("one artifact")) as page, pytest.raises(Exception, match="Timeout"):
        page.set_default_timeout(200)
        follow(page, "`No such name`")


def test_ten_questions_stand_in_the_documentation():
    assert len(questions()) >= 10
