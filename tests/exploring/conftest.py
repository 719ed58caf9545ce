"""Fixtures of the explorer: reports of artifacts."""

from __future__ import annotations

import pytest

from moec.common.roofline import FLOAT32, Peak, Roofline
from moec.exploring import kernel_runs
from moec.exploring.document import document
from moec.exploring.page import write_page
from moec.exploring.subject import Subject

LIMITS = Roofline(2, {"pages": 1e10}, (Peak(FLOAT32, "units", 1e11),))


@pytest.fixture(scope="session", autouse=True)
def limits():
    """Limits of a machine, which takes seconds to measure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_runs, "limits_of_this_machine", lambda target, threads: LIMITS)
        yield


@pytest.fixture(scope="session")
def char_document(char_lm, limits):
    """The document of char_lm."""
    return document([Subject.open(char_lm, may_measure=True)])


@pytest.fixture(scope="session")
def report(char_document, tmp_path_factory):
    """The report of char_lm."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_page(char_document, path)
    return path
