"""The view of reasons: evidence of raising, each kernel's candidates, and what passes remarked."""

from __future__ import annotations

import dataclasses

import pytest

from moec.exploring.page import page as page_of
from moec.passes.framework.base import Unraised
from moec.passes.framework.evidence import Attempt, DecisionRecord, Evidence, RaisedBlock, SideRecord, TrialRecord

from .browser import opened
from .test_page import HOSTILE, of

CANDIDATES = [
    {"kernel": "fast", "eligible": False, "reason": "needs avx512", "chosen": False},
    {"kernel": "plain", "eligible": True, "reason": "takes any size", "chosen": True},
    {"kernel": "slow", "eligible": True, "reason": "comes later", "chosen": False},
]


def kernel(name, candidates):
    return {"name": name, "op": "MatMul", "computes": "y = x @ w", "candidates": candidates}


def report(folder, **sections):
    path = folder / "report.html"
    path.write_text(page_of(of("a", **sections)), encoding="utf-8")
    return path


def test_kernels_with_a_choice_stand_first_and_lead_to_their_losers(chromium, tmp_path):
    kernels = [kernel("mapping", CANDIDATES[1:2]), kernel("product", CANDIDATES)]
    with opened(chromium, report(tmp_path, kernels=kernels), "#why") as page:
        assert page.locator("tbody th").all_inner_texts() == ["product", "mapping"]
        page.click("a:text-is('product')")
        page.wait_for_selector(".candidates")
        texts = [" ".join(text.split()) for text in page.locator(".candidates li").all_inner_texts()]
        assert texts == [
            "plain chosen takes any size",
            "fast not possible needs avx512",
            "slow possible, not chosen comes later",
        ]


def test_warnings_stand_before_notes(chromium, tmp_path):
    remarks = [
        {"pass_name": "raise-moe", "subject": "node", "message": "left as it is", "severity": severity}
        for severity in ("note", "warning")
    ]
    with opened(chromium, report(tmp_path, remarks=remarks), "#why") as page:
        assert page.locator("caption").all_inner_texts() == ["Warnings", "Remarks of passes"]


def test_without_remarks_the_view_says_that_there_is_none(chromium, tmp_path):
    with opened(chromium, report(tmp_path, kernels=[kernel("product", CANDIDATES)]), "#why") as page:
        assert "No pass remarked" in page.inner_text("main")


TRIALS = (TrialRecord("ties", 2, 4, 1e-12, 1e-5), TrialRecord("large rows", 1, 7, None, 1e-5, "it overflows"))
SIDES = (
    SideRecord("input 0 < 0", "trial", "ties"),
    SideRecord("input 0 > 0", "excluded", "input 0 is 0 or less"),
    SideRecord("input 0 == 0", "unseen"),
)


def evidence(*assumed: str) -> Evidence:
    decisions = (DecisionRecord(HOSTILE, "Relu", SIDES, others=3),)
    return Evidence(1e-12, 1e-5, "", TRIALS, decisions, assumed=assumed)


@pytest.fixture(scope="module")
def raising(tmp_path_factory):
    """A report of one block, an equal one, and a near miss in layer 7."""
    long = HOSTILE + "x" * 10_000
    first = RaisedBlock(long, "probing", "router softmax top-2", evidence("n = 3 goes on"))
    second = RaisedBlock("b1", "probing", "router softmax top-2", Evidence(1e-12, 1e-5, "", TRIALS[:1]), long)
    attempt = Attempt("known operators", "it differs", "router relu top-1", 16)
    miss = Unraised("topk", "nothing agrees", 8, 2, attempts=(attempt,), attempts_left_out=2)
    part = {"title": "experts", "kind": "dense", "layer": 7, "block": None, "reads": [], "nodes": ["up", "topk"]}
    part |= {"kernels": [], "weight_bytes": 8, "shared_bytes": 0, "formats": {"float32": 8}, "microseconds": []}
    sections = {
        "raised": [dataclasses.asdict(first), dataclasses.asdict(second)],
        "unraised": [dataclasses.asdict(miss)],
        "layers": {"parts": [part], "cases": [], "no_times": "none were measured", "stored_bytes": 0},
    }
    return report(tmp_path_factory.mktemp("raising"), **sections)


def test_the_reason_why_a_layer_is_not_raised_is_one_click_from_the_map(chromium, raising):
    with opened(chromium, raising, "#map") as page:
        page.click("a:text-is('not raised: why')")
        page.wait_for_selector("h3:text-is('What was tried')")
        text = page.inner_text("main")
        assert "nothing agrees" in text and "16 proposals on a few tokens" in text and "leaves out 2 more" in text


def test_evidence_shows_both_sides_what_was_not_reached_and_what_is_assumed(chromium, raising):
    with opened(chromium, raising, "#why") as page:
        page.click("a:text-is('b1')")
        page.wait_for_selector("h2:text-is('Why b1 was raised')")
        page.click("dl a")
        page.wait_for_selector("caption :text-is('Both sides of every decision')")
        sides = page.locator("table").first.locator("tbody td:last-child").all_inner_texts()
        assert sides == ["in the trial 'ties'", "not needed: input 0 is 0 or less", "no: no trial reached it"]
        text = page.inner_text("main")
        assert HOSTILE in text and "n = 3 goes on" in text and "and 3 alike" in text
        assert "the model's own operators fail: it overflows" in text
        assert page.locator("img").count() == 0 and len(page.inner_text("main")) < 4000
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_block_without_evidence_is_told(chromium, raising):
    with opened(chromium, raising, "#why/block/other") as page:
        assert "There is no evidence for other" in page.inner_text("main")
