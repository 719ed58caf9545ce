"""Artifacts side by side: what differs stands first, and what does not is said to be equal."""

from __future__ import annotations

import copy

import pytest

from moec.exploring.document import document
from moec.exploring.page import write_page
from moec.exploring.subject import Subject

from .browser import opened


@pytest.fixture(scope="module")
def compared(char_lm, tmp_path_factory):
    """The report of char_lm and of a copy with another line in one kernel, without another kernel and a node less."""
    described = document([Subject.open(char_lm)])
    other = copy.deepcopy(described["artifacts"][0])
    other["title"] = "other"
    next(level for level in other["texts"]["moe_combine"]["levels"] if level["level"] == "tir")["text"] += (
        "one more line\n"
    )
    other["kernels"] = [kernel for kernel in other["kernels"] if kernel["name"] != "gather"]
    del other["passes"]["stages"][-1]
    described["artifacts"].append(other)
    path = tmp_path_factory.mktemp("compared") / "report.html"
    write_page(described, path)
    return path


def state(page, kernel):
    return page.locator(f"tr:has(:text-is('{kernel}')) td").first.inner_text()


def test_kernels_that_differ_stand_first(chromium, compared):
    with opened(chromium, compared, "#compare") as page:
        page.wait_for_selector("text=Kernels")
        assert [state(page, name) for name in ("gather", "moe_combine", "moe_route")] == [
            "only in char_lm.moec",
            "differs",
            "equal",
        ]
        page.click("a:text-is('moe_combine')")
        page.wait_for_selector("text=1 of")
        assert page.inner_text(".difference .added").split() == ["+", "added:", "one", "more", "line"]
        assert page.locator(".difference .removed").count() == 0


def test_equal_kernels_have_no_difference(chromium, compared):
    with opened(chromium, compared, "#compare/1/kernel/moe_route") as page:
        page.wait_for_selector("text=No line differs.")
        assert page.locator(".difference .added, .difference .removed").count() == 0


def test_models_are_compared_after_their_last_passes(chromium, compared):
    with opened(chromium, compared, "#1:compare/0/model") as page:
        page.wait_for_selector("text=lines differ")
        assert page.locator(".difference .removed").count() > 40


def test_a_report_of_one_artifact_compares_nothing(chromium, report):
    with opened(chromium, report, "#compare") as page:
        assert page.inner_text("main h2") == "Map"
