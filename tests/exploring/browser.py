"""A real browser for reports: Debian's Chromium, headless, driven by Playwright, with the network blocked."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDE, NARROW = (1280, 800), (390, 844)
_TIMEOUT = 30_000
"""Milliseconds."""
_ARGUMENTS = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--no-sandbox",
)


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Context with a browser. Skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=list(_ARGUMENTS))
        try:
            yield chromium
        finally:
            chromium.close()


@contextlib.contextmanager
def opened(
    chromium: Any, report: pathlib.Path, address: str = "", size: tuple[int, int] = WIDE, scheme: str = "light"
) -> Iterator[Any]:
    """Context with a page of a report, opened from its file. Fails at the end if the page asked for anything else, or
    wrote an error to the console. A page after which nothing failed is opened again: another process costs a second."""
    page, faults = _empty_page(chromium, size, scheme), []
    listeners = {
        "console": lambda message: faults.append(message.text) if message.type == "error" else None,
        "pageerror": lambda error: faults.append(str(error)),
        "request": lambda request: None if _is_own(request.url, report) else faults.append(f"asks {request.url}"),
    }
    for event, listener in listeners.items():
        page.on(event, listener)
    try:
        page.goto(f"{report.absolute().as_uri()}{address}")
        page.wait_for_selector("main h2, main [role=alert]")
        yield page
        assert not faults, "\n".join(faults)
    except BaseException:
        page.context.close()
        raise
    for event, listener in listeners.items():
        page.remove_listener(event, listener)


def _empty_page(chromium: Any, size: tuple[int, int], scheme: str) -> Any:
    """The page that is open, emptied, or a new one."""
    if chromium.contexts:
        (page,) = chromium.contexts[0].pages
    else:
        page = chromium.new_context(offline=True, reduced_motion="reduce").new_page()
    page.set_default_timeout(_TIMEOUT)
    page.goto("about:blank")
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.emulate_media(color_scheme=scheme)
    return page


def _is_own(url: str, report: pathlib.Path) -> bool:
    return url.startswith((report.absolute().as_uri(), "blob:", "data:"))
