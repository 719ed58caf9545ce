"""The picture of the explorer in README and docs/explorer.md, which ``pytest --update-golden`` takes anew."""

from __future__ import annotations

import pathlib

from .browser import opened

PICTURE = pathlib.Path(__file__).parents[2] / "docs" / "explorer.png"
MOST_BYTES = 150_000


def test_the_picture_shows_levels_of_a_kernel(running, report, request):
    """Pixels differ with fonts, so that without ``--update-golden`` only the picture's kind and size are checked."""
    with opened(running, report, "#kernel/moe_combine/tir/31", (1080, 560)) as page:
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
