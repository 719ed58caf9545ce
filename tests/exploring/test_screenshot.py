"""Pictures of the explorer in README and docs/explorer.md, which ``pytest --update-golden`` takes anew.

Pixels differ with fonts, so that otherwise only kinds and sizes of the pictures are checked.
"""

from __future__ import annotations

import pathlib

import pytest

import moec
from moec.exploring.page import write_page
from moec.exploring.results import write_sweep
from moec.tools.sweeping import Sweep

from ..command import moec as moec_command
from .browser import opened
from .test_questions import REPORTS
from .test_results import variant

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PICTURE, MOST_BYTES = DOCS / "explorer.png", 150_000
SIZE, MOST_BYTES_OF_A_VIEW = (980, 700), 90_000
VIEWS = {
    "map": ("a model in several formats", "#map"),
    "block": ("one artifact", "#block/0"),
    "experts": ("a model in several formats", "#experts"),
    "passes": ("one artifact", "#passes/6"),
    "why": ("one artifact", "#why/block/node_topk__1"),
    "roofline": ("one artifact", "#roofline"),
    "timeline": ("a trace", "#timeline"),
    "design": ("an FPGA design", "#design"),
    "compare": ("two artifacts", "#compare"),
    "sweep": ("a sweep", "#sweep"),
}
"""Of each view the kind of report that its picture shows, and its address."""


def test_the_picture_shows_levels_of_a_kernel(chromium, report, request):
    with opened(chromium, report, "#kernel/moe_combine/tir/31", (1080, 560)) as page:
        for level in ("ONNX nodes", "LLVM"):
            page.click(f"button:text-is('{level}')")
        page.wait_for_selector(".cm-line.chosen")
        page.evaluate("scrollTo(0, 240)")
        taken = page.screenshot()
    if request.config.getoption("--update-golden"):
        PICTURE.write_bytes(taken)
    kept = PICTURE.read_bytes()
    assert kept.startswith(b"\x89PNG")
    assert 10_000 < len(kept) <= MOST_BYTES


@pytest.mark.parametrize("view", VIEWS)
def test_each_view_has_a_picture_in_the_documentation(view, request, tmp_path):
    path = DOCS / "explorer" / f"{view}.jpeg"
    if request.config.getoption("--update-golden"):
        kind, address = VIEWS[view]
        write_report(kind, tmp_path / "report.html", request)
        with opened(request.getfixturevalue("chromium"), tmp_path / "report.html", address, SIZE) as page:
            page.wait_for_timeout(500)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(page.screenshot(type="jpeg", quality=72))
    kept = path.read_bytes()
    assert kept.startswith(b"\xff\xd8")
    assert 5_000 < len(kept) <= MOST_BYTES_OF_A_VIEW
    assert f"(explorer/{view}.jpeg)" in (DOCS / "explorer.md").read_text(encoding="utf-8")


def write_report(kind: str, path: pathlib.Path, request: pytest.FixtureRequest) -> None:
    if kind == "a trace":
        artifact, trace = request.getfixturevalue("char_lm"), path.with_suffix(".json")
        moec_command("bench", artifact, "--trace", trace)
        moec.explore(artifact, path, trace=trace)
    elif kind == "a sweep":
        sizes = {
            "int8": (1_100_000, 1.38),
            "int4/32": (640_000, 1.393),
            "int3": (530_000, 1.47),
            "int2": (390_000, 1.65),
        }
        rounded = [variant(f"O2,quantize-experts{{format={name}}}", *costs) for name, costs in sizes.items()]
        write_sweep(Sweep([variant("O2", 3_900_000, 1.379), *rounded]), path)
    else:
        write_page(REPORTS[kind](request.getfixturevalue("char_document")), path)
