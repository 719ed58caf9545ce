"""The check of compiled projects: it fails for code that breaks a rule, and only for that."""

from __future__ import annotations

from typing import Any

import pytest

from moec.targets.base import Project, Projects
from moec.targets.hls.target import HlsTarget

from ..small_design import TWICE, project, source
from .compiled import linting


def made(text: str) -> Projects:
    return Projects("hls:zcu102", [], [], [Project("model", project(text), {})])


def compiled(projects: Projects) -> Projects:
    unused: Any = None
    return linting(lambda _target, _model: projects)(unused, unused)


def test_projects_without_faults_are_returned():
    projects = made(source())
    assert compiled(projects) is projects


def test_a_project_that_breaks_a_rule_fails():
    with pytest.raises(AssertionError, match="pinned-styles"):
        compiled(made(source(twice=TWICE.replace(" style=stp", ""))))


def test_a_project_of_the_same_code_is_read_once_and_an_edited_one_again():
    results = [made(source()), made(source()), made(source(twice=TWICE.replace(" style=stp", "")))]
    checked = linting(lambda _target, _model: results.pop(0))
    unused: Any = None
    for _ in range(2):
        checked(unused, unused)
    with pytest.raises(AssertionError):
        checked(unused, unused)


def test_projects_of_these_tests_are_checked():
    assert HlsTarget.compile.__wrapped__ is not None
