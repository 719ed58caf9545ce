"""Mixtures of experts written in PyTorch, through both exporters: those that the dialect can say are raised."""

from __future__ import annotations

import pytest

from ..products import sampled

pytest.importorskip("torch", reason='needs the extra "torch": pip install "moec[torch]"')

from .exports import EXPORTERS, NotExportedError, verdict_of
from .formulations import FORMULATIONS

GAPS = {
    "expert choice",
    "shared up projection",
    "sort and split",
}
"""Formulations that the dialect can say and that are not raised. Who closes a gap takes it out of here."""


@pytest.mark.parametrize(("name", "exporter"), sampled([*FORMULATIONS], EXPORTERS, 75))
def test_a_formulation_is_raised_or_refused(name, exporter):
    """``unequal``: the exporter wrote another function."""
    try:
        verdict = verdict_of(name, exporter)
    except NotExportedError as error:
        pytest.skip(f"it cannot be exported: {error}")
    if name in GAPS or FORMULATIONS[name].fits:
        assert verdict.status in ("raised", "refused", "unequal"), f"{verdict.status}: {verdict.detail}"
    else:
        assert verdict.status in ("raised", "unequal"), f"{verdict.status}: {verdict.detail}"


def test_what_does_not_fit_the_dialect_says_why():
    assert sum(bool(kind.fits) for kind in FORMULATIONS.values()) >= 5
    assert sum(not kind.fits for kind in FORMULATIONS.values()) >= 80
