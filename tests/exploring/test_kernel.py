"""The view of a kernel: its levels, and the lines that belong together."""

from __future__ import annotations

from moec.exploring.page import page as page_of

from .browser import opened
from .test_design import PROJECT
from .test_page import of

LEVELS = [
    {"level": "onnx", "text": "a\nb\n", "lines": [1, 2], "absent": None},
    {"level": "operators", "text": "o\n", "lines": [3], "absent": None},
    {"level": "tir", "text": "head\nfor i\nbody\n", "lines": [None, 4, 5], "absent": None},
    {"level": "asm", "text": "w\nx\ny\nz\n", "lines": [6, 7, 7, None], "absent": None},
    {"level": "ptx", "text": "", "lines": [], "absent": "nvcc was not installed"},
]
PARENTS = {"3": [1, 2], "4": [3], "5": [3], "6": [4], "7": [5]}
LOOP = {"variable": "i", "kind": "serial", "line": 2, "extent": 8, "bytes_read": "4 * n", "bytes_written": 2048}
SHOWN = {
    "levels": LEVELS,
    "parents": PARENTS,
    "loops": [{**LOOP, "operations": 0, "children": []}],
    "buffers": [{"name": "tile", "scope": "shared", "shape": [16, 65], "dtype": "float32", "bytes": 4160}],
    "resources": [],
}
KERNEL = {"name": "k", "op": "MatMul", "computes": "y = x", "calls": 2, "candidates": []}


def report(folder):
    path = folder / "report.html"
    path.write_text(page_of(of("a", kernels=[KERNEL], texts={"k": SHOWN})), encoding="utf-8")
    return path


def test_a_design_is_shown_with_its_code_and_leads_to_its_processes(chromium, tmp_path):
    levels = [{"level": "hls", "text": "void top() {}\n", "lines": [None], "absent": "lines belong to no single node"}]
    texts = {"model": {"levels": levels, "parents": {}, "loops": [], "buffers": [], "resources": []}}
    path = tmp_path / "report.html"
    path.write_text(page_of(of("a", projects=[PROJECT], texts=texts)), encoding="utf-8")
    with opened(chromium, path, "#design") as page:
        page.click("text=Its code")
        page.wait_for_selector("h3:text-is('HLS C++')")
        page.wait_for_selector(".cm-line")
        assert page.locator(".cm-line").all_inner_texts() == ["void top() {}"]
        page.click("text=its processes")
        page.wait_for_selector("h2:text-is('Design model')")


def marked(page):
    """Texts of marked lines in all panes."""
    return page.locator(".cm-line.marked").all_inner_texts()


def test_a_line_marks_what_it_comes_from_and_what_comes_from_it(chromium, tmp_path):
    with opened(chromium, report(tmp_path), "#kernel/k") as page:
        assert marked(page) == []
        assert page.locator("text=its processes").count() == 0
        page.hover(".cm-line:text-is('body')")
        page.wait_for_selector(".cm-line.marked")
        assert marked(page) == ["a", "b", "o", "body", "x", "y"]
        page.hover(".cm-line:text-is('w')")
        page.wait_for_function("document.querySelectorAll('.cm-line.marked').length === 5")
        assert marked(page) == ["a", "b", "o", "for i", "w"]
        page.hover(".cm-line:text-is('head')")
        page.wait_for_function("document.querySelectorAll('.cm-line.marked').length === 0")


def test_a_click_is_an_address(chromium, tmp_path):
    with opened(chromium, report(tmp_path), "#kernel/k") as page:
        page.click(".cm-line:text-is('y')")
        page.wait_for_selector(".cm-line.chosen")
        assert page.evaluate("location.hash") == "#kernel/k/asm/3"


def test_loops_lead_to_their_lines_and_formulas_stay_formulas(chromium, tmp_path):
    with opened(chromium, report(tmp_path), "#kernel/k") as page:
        row = page.locator("tr:has(button:text-is('i'))")
        assert [" ".join(text.split()) for text in row.locator("td").all_inner_texts()] == [
            *("serial", "8", "4 * n", "2 KiB", "0")
        ]
        page.click("button:text-is('i')")
        page.wait_for_selector(".cm-line.chosen")
        assert page.inner_text(".cm-line.chosen") == "for i"


def test_a_level_without_text_says_why(chromium, tmp_path):
    with opened(chromium, report(tmp_path), "#kernel/k") as page:
        assert "No text: nvcc was not installed." in page.inner_text("main")
        assert page.locator(".cm-content").count() == 4
        page.click("button:text-is('Assembly')")
        assert page.locator(".cm-content").count() == 3
