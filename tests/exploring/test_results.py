"""Pages of sweeps and evaluations, also where values are not finite or only one model was judged."""

from __future__ import annotations

import math

import pytest

from moec.exploring.results import write_evaluation, write_sweep
from moec.tools.evaluate import Evaluation, Judged, MetricValue
from moec.tools.sweeping import Sweep
from moec.tools.sweeping.file import Times, Variant

from .browser import opened


def variant(pipeline, size, loss, errors=None):
    quality = {"loss": MetricValue(loss, None if pipeline == "O2" else loss - 1, 0.1)}
    return Variant({}, pipeline, size, 32.0, 0, quality, {"x[1]": Times(1.0, 2.0)}, None, errors or {})


def judged(name, loss, difference=None, interval=None, errors=None):
    return Judged(name, 2048, None, 0, 0, {"loss": MetricValue(loss, difference, interval)}, errors or {})


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep: the second variant is beaten by the third, the last is not finite, and one failed."""
    path = tmp_path_factory.mktemp("swept") / "sweep.html"
    variants = [variant("O2", 4096, 1.0), variant("O2,a", 3072, 1.5), variant("O2,b", 1024, 1.25, {"layer": 0.125})]
    write_sweep(Sweep([*variants, variant("O2,c", 512, math.inf)], failures={"O2,d": "no rows"}), path)
    return path


def test_a_sweep_marks_its_front(chromium, swept):
    with opened(chromium, swept) as page:
        rows = page.locator("tbody tr").all_inner_texts()
        assert ["★" in row for row in rows[:4]] == [True, False, True, True]
        assert "3 KiB" in rows[1] and "inf" in rows[3]
        assert page.locator("figure").first.locator(".point").count() == 3
        assert page.locator("figure").first.locator(".on-front").count() == 2
        assert "12.5%" in page.inner_text("tr:has-text('layer') >> nth=-1")
        assert "failed: no rows" in page.inner_text("main")


def test_a_sweep_without_failures_and_rounding_names_none(chromium, tmp_path):
    path = tmp_path / "sweep.html"
    write_sweep(Sweep([variant("O2", 4096, 1.0)]), path)
    with opened(chromium, path) as page:
        assert "failed" not in page.inner_text("main")
        assert "No weights were rounded" in page.inner_text("main")


def test_an_evaluation_shows_differences_with_intervals(chromium, tmp_path):
    path = tmp_path / "page.html"
    models = [
        judged("first", 1.0),
        judged("second", 1.5, 0.5, 0.25, {"layer": 0.5}),
        judged("third", math.nan, math.nan),
    ]
    write_evaluation(Evaluation("logits", 4, 12, models), path)
    with opened(chromium, path) as page:
        assert "1.5 (+0.5 ± 0.25)" in page.inner_text("tbody tr >> nth=1")
        assert page.locator("figure .interval").count() == 1
        assert "not finite" in page.inner_text("figure >> nth=0")


def test_one_model_has_no_difference(chromium, tmp_path):
    path = tmp_path / "page.html"
    write_evaluation(Evaluation("logits", 4, 0, [judged("first", 1.0)]), path)
    with opened(chromium, path) as page:
        assert page.locator("figure").count() == 0
