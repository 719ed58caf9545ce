"""Output and plots of ``moec sweep``."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.text import Text

from moec.common.errors import MoecError
from moec.common.seals import write_sealed
from moec.common.tables import table
from moec.inspect.evaluation import quality_text
from moec.tools.evaluate import METHOD, MetricValue, finite

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


def draw(sweep: Sweep, path: pathlib.Path) -> None:
    """Plot quality over each cost, as a PNG. Raises MoecError where matplotlib is not installed, or where a file exists
    that moec did not write."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MoecError("matplotlib is not installed: no plot; pip install 'moec[plot]' makes one next time")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    costs, fronts = sweep.costs(), sweep.fronts()
    listed = "\n".join(f"{at}  {label(variant.pipeline)}" for at, variant in enumerate(sweep.variants, 1))
    figure = Figure(figsize=(3.5 * len(costs), 4 + 0.12 * len(sweep.variants)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for panel, (name, values) in zip(panels, costs.items(), strict=True):
        _draw_panel(panel, values, [variant.qualities[sweep.metric] for variant in sweep.variants], fronts[name])
        panel.set_xlabel(name)
        if not name.startswith("time"):
            panel.set_xscale("log", base=2)
            panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    panels[0].set_ylabel(sweep.metric)
    figure.supxlabel(listed, fontsize=7, x=0.01, ha="left")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    write_sealed(path, image.getvalue(), "")


def _draw_panel(
    panel: Any, costs: Sequence[float | None], qualities: Sequence[MetricValue], front: Sequence[bool]
) -> None:
    """Plot points with their numbers and, except for the first, error bars of the quality; a line connects the
    front."""
    for number, (cost, quality) in enumerate(zip(costs, qualities, strict=True), 1):
        if cost is not None:
            panel.errorbar(cost, quality.value, quality.interval, fmt="o", color="gray", markersize=3, linewidth=0.7)
            panel.annotate(str(number), (cost, quality.value), (3, 3), textcoords="offset points", fontsize=7)
    places = zip(costs, qualities, front, strict=True)
    line = sorted((cost, quality.value) for cost, quality, marked in places if cost is not None and marked)
    panel.plot([cost for cost, _ in line], [value for _, value in line], "o-", color="tab:blue", markersize=4)
    panel.grid(alpha=0.3)


def _cost(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _star(on_front: bool) -> str:
    return " *" if on_front else ""
