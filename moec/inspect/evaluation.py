"""Output of ``moec evaluate``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from moec.common.tables import table

if TYPE_CHECKING:
    from moec.tools.evaluate import Evaluation, Judged, MetricValue


def evaluation_tables(evaluation: Evaluation) -> Iterator[RenderableType]:
    """Show a row for each model, and the legend."""
    metrics = list(evaluation.models[0].qualities)
    headings = ("model", "weights, bytes", "bits of experts", *metrics)
    yield table(f"Output {evaluation.output}", headings, [_row(model) for model in evaluation.models])
    predictions = f", {evaluation.predictions} predictions" if evaluation.predictions else ""
    yield Text(f"{evaluation.rows} rows{predictions}")
    if len(evaluation.models) > 1:
        yield Text(f"in brackets: {evaluation.method}")


def nan_notes(evaluation: Evaluation) -> Iterator[str]:
    """Write a line for every model whose output had NaN."""
    for model in evaluation.models:
        if model.nan_outputs:
            yield (
                f"{model.name}: {model.nan_outputs} elements of {evaluation.output} are NaN, in {model.nan_rows} of "
                f"{evaluation.rows} rows"
            )


def _row(model: Judged) -> tuple[str, ...]:
    bits = "-" if model.expert_bits is None else f"{model.expert_bits:.2f}"
    return model.name, f"{model.weight_bytes:,}", bits, *map(quality_text, model.qualities.values())


def quality_text(quality: MetricValue, alone: bool = False) -> str:
    """Write ``1.3912 (+0.013 ± 0.0021)``; ``alone``: without the difference."""
    if quality.difference is None or alone:
        return f"{quality.value:#.5g}"
    interval = "" if quality.interval is None else f" ± {quality.interval:.2g}"
    return f"{quality.value:#.5g} ({quality.difference:+.2g}{interval})"
