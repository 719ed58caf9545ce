"""Output of ``moec sweep``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.text import Text

from moec.common.tables import table
from moec.inspect.evaluation import quality_text
from moec.tools.evaluate import METHOD, finite

if TYPE_CHECKING:
    from moec.tools.sweeping import Sweep

_PROFILE = re.compile(r",profile=[^,}]*")


def label(pipeline: str) -> str:
    """Shorten a pipeline: omit the level before it, and the name of its profile."""
    return _PROFILE.sub("", pipeline).removeprefix("O2,")


def sweep_tables(sweep: Sweep) -> Iterator[RenderableType]:
    """Show a row for each variant, with stars where no other is both as good and as cheap."""
    metrics, costs, fronts = list(sweep.variants[0].qualities), sweep.costs(), sweep.fronts()
    rows = [
        (
            str(at + 1),
            label(variant.pipeline),
            *(quality_text(variant.qualities[metric], alone=at == 0) for metric in metrics),
            *(_cost(values[at]) + _star(fronts[name][at]) for name, values in costs.items()),
        )
        for at, variant in enumerate(sweep.variants)
    ]
    yield table("Variants", ("", "passes behind O2", *metrics, *costs), rows)
    yield Text(f"*: on the Pareto front of {sweep.metric} and this cost")
    yield Text(
        "time: medians, as a share of the first variant's, which ran in turns with each on this machine; its own share "
        "shows how much chance is in them"
    )
    milliseconds = ", ".join(f"{case} {times.milliseconds:.3f} ms" for case, times in sweep.variants[0].times.items())
    yield Text(f"that of the first: {milliseconds}")
    yield Text(f"in brackets: {METHOD}")
    if sweep.reused:
        yield Text(f"{sweep.reused} of {len(sweep.variants)} variants were there already")


def sweep_data(sweep: Sweep) -> list[dict[str, Any]]:
    """Convert to plain data: for each variant its fields as in ``sweep.json``, except its key, and ``fronts``, the
    costs whose front it is on."""
    fronts = sweep.fronts()
    described = []
    for at, variant in enumerate(sweep.variants):
        fields = finite(dataclasses.asdict(variant))
        del fields["key"]
        described.append({**fields, "fronts": [name for name, marks in fronts.items() if marks[at]]})
    return described


def _cost(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _star(on_front: bool) -> str:
    return " *" if on_front else ""
