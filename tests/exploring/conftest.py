"""Fixtures of the explorer: one browser for all tests of a process, and reports of artifacts."""

from __future__ import annotations

import pytest

import moec
from moec.common.roofline import FLOAT32, Peak, Roofline
from moec.exploring import times

from .browser import browser


@pytest.fixture(scope="session")
def running():
    """A browser; the test is skipped where there is none."""
    with browser() as started:
        yield started


LIMITS = Roofline(2, {"pages": 1e10}, (Peak(FLOAT32, "units", 1e11),))


@pytest.fixture(scope="session", autouse=True)
def limits():
    """Limits of a machine, which takes seconds to measure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(times, "_limits_of_this_machine", lambda target, threads: LIMITS)
        yield


@pytest.fixture(scope="session")
def report(char_lm, tmp_path_factory, limits):
    """The report of char_lm."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    moec.explore(char_lm, path)
    return path
