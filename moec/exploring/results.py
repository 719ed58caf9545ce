"""Sections ``evaluation`` and ``sweep``: results of ``moec evaluate`` and ``moec sweep`` as pages."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from moec.exploring.document import document
from moec.exploring.page import write_page
from moec.tools.evaluate import Evaluation, finite
from moec.tools.metrics import METRICS
from moec.tools.sweeping import Sweep


def write_evaluation(evaluation: Evaluation, path: pathlib.Path) -> None:
    """Write a page with the qualities of models, their differences with intervals, and the errors of layers."""
    metrics = _directions(evaluation.models[0].qualities)
    section = {**evaluation.as_data(), "metrics": metrics}
    write_page(document((), title=f"Evaluation of {evaluation.output}", evaluation=section), path)


def write_sweep(sweep: Sweep, path: pathlib.Path) -> None:
    """Write a page with quality over each cost of a sweep's variants, the Pareto fronts, and the errors of layers."""
    variants = [finite(dataclasses.asdict(variant)) for variant in sweep.variants]
    section = {
        "metrics": _directions(sweep.variants[0].qualities),
        "variants": variants,
        "costs": sweep.costs(),
        "fronts": sweep.fronts(),
        "failures": sweep.failures,
    }
    write_page(document((), title="Sweep", sweep=section), path)


def _directions(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Whether more is better, by metric."""
    return {name: {"more_is_better": METRICS[name].more_is_better} for name in metrics}
