"""Fixtures for FPGA projects: the linter reads every project that tests compile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from moec.targets.hls.target import HlsTarget

from .lint.compiled import linting


@pytest.fixture(scope="session", autouse=True)
def every_compiled_project_is_linted() -> Iterator[None]:
    """Make compiling a project whose code breaks a rule of the linter fail."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HlsTarget, "compile", linting(HlsTarget.compile))
        yield
