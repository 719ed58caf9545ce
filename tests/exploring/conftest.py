"""Fixtures of the explorer: one browser for all tests of a process, and reports of artifacts."""

from __future__ import annotations

import pytest

import moec

from .browser import browser


@pytest.fixture(scope="session")
def running():
    """A browser; the test is skipped where there is none."""
    with browser() as started:
        yield started


@pytest.fixture(scope="session")
def report(char_lm, tmp_path_factory):
    """The report of char_lm."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    moec.explore(char_lm, path)
    return path
