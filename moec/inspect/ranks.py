"""The tables of ``moec inspect --ranks``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from moec.common.tables import table
from moec.inspect.alike import merged, names
from moec.predicting.advice import LEAST, RunChange
from moec.predicting.layers import LayerTime
from moec.predicting.links import Link
from moec.predicting.report import RanksReport
from moec.predicting.workload import Prediction

_HEADINGS = ("layer", "µs", "send", "experts", "return", "communication", "most rows of a rank", "kB sent")


def ranks_tables(report: RanksReport) -> Iterator[RenderableType]:
    """Show the predicted times of layers at each number of tokens, and what would help."""
    setup = report.predictions[0][0].setup
    ranks, nodes = setup.placement.ranks, setup.placement.nodes
    links = _link(report.links.inside) + (
        f" inside of nodes, {_link(report.links.between)} between" if nodes > 1 else ""
    )
    yield Text(
        f"Predicted, not measured: {ranks} ranks on {nodes} node{'s'[: nodes > 1]}, each {report.model.machine.title} "
        f"({report.model.machine.source}); links of {links}. Products take the least time that these limits allow."
    )
    yield Text(f"Transport {report.choice.transport}: {report.choice.reason}")
    yield Text(f"Placement: {report.placed}. Routing: {report.model.routing}.")
    for predicted, ranked in report.predictions:
        yield _run_table(predicted)
        yield Text(_advice(predicted, ranked))
    if report.model.left_out:
        yield Text(f"Layers that are not predicted: {'; '.join(report.model.left_out)}")
    if report.model.unknown:
        yield Text(f"Not predicted: {len(report.model.unknown)} kernels, whose sizes are computed at run time")


def _link(link: Link) -> str:
    return f"{link.bandwidth / 1e9:.3g} GB/s and {link.latency * 1e6:.3g} µs"


def _run_table(predicted: Prediction) -> RenderableType:
    tokens = predicted.setup.tokens
    halves = ", in two halves" if predicted.setup.halves else ""
    title = (
        f"{tokens} token{'s'[: tokens != 1]} on each rank{halves}: {predicted.seconds * 1e6:.3g} µs, "
        f"{predicted.exposed:.0%} of it communication, {1 / predicted.seconds_per_token:.3g} tokens/s"
    )
    rows = [
        (names([predicted.layers[place].name for place in places]), *cells)
        for places, cells in merged([_cells(layer) for layer in predicted.layers])
    ]
    return table(title, _HEADINGS, rows)


def _cells(layer: LayerTime) -> tuple[str, ...]:
    times = (f"{seconds * 1e6:.3g}" for seconds in (layer.seconds, layer.out, layer.experts, layer.back))
    return *times, f"{layer.exposed:.0%}", f"{layer.imbalance:.2f} of the mean", f"{layer.sent / 1e3:.3g}"


def _advice(predicted: Prediction, ranked: Sequence[RunChange]) -> str:
    helpful = [change for change in ranked if change.saved >= LEAST]
    if not helpful:
        return f"None of {len(ranked)} changes would save {LEAST:.0%} of the time per token."
    return "\n".join(["What would help most, predicted:", *(f"  {change.text}" for change in helpful)])
