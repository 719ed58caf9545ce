"""The frame of the page: addresses, search and keys."""

from __future__ import annotations

from .browser import opened


def test_an_address_leads_to_a_line(chromium, report, char_document):
    with opened(chromium, report, "#kernel/moe_combine/tir/15") as page:
        assert page.inner_text("main h2") == "moe_combine"
        assert page.locator(".cm-content").count() == 5
        levels = char_document["artifacts"][0]["texts"]["moe_combine"]["levels"]
        tir = next(level for level in levels if level["level"] == "tir")
        page.wait_for_selector(".cm-line.chosen")
        assert page.locator(".cm-line.chosen").all_inner_texts() == [tir["text"].splitlines()[14]]


def test_an_address_of_nothing_says_so(chromium, report):
    with opened(chromium, report) as page:
        page.goto(f"{report.as_uri()}#kernel/none%")
        page.wait_for_selector("[role=alert]")
        assert "none%" in page.inner_text("[role=alert]")


def test_search_finds_a_kernel(chromium, report):
    with opened(chromium, report) as page:
        page.keyboard.press("/")
        page.wait_for_selector("dialog input:focus")
        page.keyboard.type("combine")
        page.wait_for_selector("dialog li:has-text('moe_combine')")
        page.keyboard.press("Enter")
        page.wait_for_selector("main h2:has-text('moe_combine')")
        assert page.locator("dialog").count() == 0


def test_keys_are_listed_and_lead_to_views(chromium, report):
    with opened(chromium, report) as page:
        page.keyboard.press("?")
        assert "Search" in page.inner_text("dialog")
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog", state="detached")
        page.keyboard.press("k")
        page.wait_for_selector("main .text-pane")
