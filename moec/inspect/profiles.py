"""Output of ``moec profile`` and ``moec plan``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from moec.common.tables import table

if TYPE_CHECKING:
    from moec.tools.profiling.driver import LayerSummary, Measured

_HEADINGS = ("layer", "experts", "tokens", "least used", "with few tokens", "data needed")


def measured_tables(measured: Measured, path: str) -> Iterator[RenderableType]:
    """Show the layers of experts with the data that their profile lacks, and a summary."""
    if measured.layers:
        yield table("Experts", _HEADINGS, [_row(layer) for layer in measured.layers])
    share = measured.seconds / measured.run_seconds if measured.run_seconds else 0.0
    yield Text(
        f"{path}: {measured.tokens} tokens in {measured.batches} batches, {len(measured.layers)} layers of experts, "
        f"{measured.linears} linears; {measured.seconds:.1f} s, {share:.1f} times the {measured.run_seconds:.1f} s in "
        "which the model ran"
    )
    if measured.held_back:
        yield Text(f"{measured.held_back} tokens were held back: assign-bits judges its plans by them")
    yield from (Text(f"note: {note}") for note in measured.notes)


def _row(layer: LayerSummary) -> tuple[str, ...]:
    if not layer.few:
        needed = "enough"
    elif layer.more is None:
        needed = "unknown: an expert saw none"
    else:
        needed = f"{layer.more + 1:.1f} times this"
    few = f"{layer.few} under {layer.enough}" if layer.few else ""
    return layer.name, str(layer.experts), str(layer.tokens), str(layer.least), few, needed
