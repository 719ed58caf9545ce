"""The table of ``moec plan -o``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.console import RenderableType

from moec.common.tables import table
from moec.placing.plan import ExpertPlan, LayerPlan


def plan_table(plan: ExpertPlan) -> RenderableType:
    """Count the experts of each layer in each format, and on each rank, with those that stay in memory."""
    rows = [(layer.name, tier, text) for layer in plan.layers for tier, text in _tiers(layer)]
    return table("Plan", ("layer", "tier", "experts"), rows)


def _tiers(layer: LayerPlan) -> Iterator[tuple[str, str]]:
    for operand, formats in layer.formats.items():
        yield operand, ", ".join(f"{count} x {form}" for form, count in sorted(Counter(formats).items()))
    for tier, ranks in (("ranks", layer.slots), ("in memory", layer.resident)):
        if ranks:
            yield tier, ", ".join(str(len(experts)) for experts in ranks)
