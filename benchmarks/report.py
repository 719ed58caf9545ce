"""Tables and picture of the results of ``moe_layer.py``."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import itertools
import math
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from formats import FORMATS
from layers import LAYERS
from results import Results

from moec.common.roofline import Roofline

BITS_TOLERANCE = 0.05
"""Tolerance of bits: a peer is compared with moec if its weights take at most this much less memory than moec's."""
ERROR_TOLERANCE = 0.05
"""Tolerance of errors: a variant of moec is compared with peers whose errors are smaller by at most this much."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """Measurements of one contestant in one cell."""

    name: str
    min_ms: float
    median_ms: float
    error: float
    bits: float
    operations: int
    bytes_read: float

    @property
    def times(self) -> str:
        return f"{self.min_ms:.3g} / {self.median_ms:.3g}"

    @property
    def rates(self) -> tuple[str, str]:
        """10**9 operations, and GB of weights, per second."""
        return f"{self.operations / self.min_ms / 1e6:.3g}", f"{self.bytes_read / self.min_ms / 1e6:.3g}"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row of a table: a layer in a format with a number of tokens."""

    data: dict[str, Any]

    @property
    def contestants(self) -> dict[str, Figures]:
        return {name: self._figures(name, figures) for name, figures in self.data["contestants"].items()}

    @property
    def moec(self) -> Figures | None:
        """Variant that is compared with the best peer; the first where there is none."""
        return self._contest[0]

    @property
    def best_peer(self) -> Figures | None:
        """The fastest peer relative to the variant of moec it is compared with."""
        return self._contest[1]

    @property
    def speed_up(self) -> float | None:
        """Speed-up of moec over the best peer."""
        return self.best_peer.min_ms / self.moec.min_ms if self.moec and self.best_peer else None

    @functools.cached_property
    def _contest(self) -> tuple[Figures | None, Figures | None]:
        """Select the variant of moec and the peer to compare.

        A peer that reads about as many bits per weight or more is compared with the fastest variant of moec whose error
        is no larger, or else with the variant of the least error.
        """
        variants = [figures for name, figures in self.contestants.items() if name.split()[0] == "moec"]
        peers = [figures for name, figures in self.contestants.items() if name.split()[0] != "moec"]
        if not variants:
            return None, min(peers, key=lambda figures: figures.min_ms, default=None)
        exact = min(variants, key=lambda figures: figures.error)
        pairs = []
        for peer in peers:
            alike = [
                figures
                for figures in variants
                if figures is exact or figures.error <= peer.error * (1 + ERROR_TOLERANCE)
            ]
            if peer.bits >= exact.bits * (1 - BITS_TOLERANCE):
                pairs.append((min(alike, key=lambda figures: figures.min_ms), peer))
        return min(pairs, key=lambda pair: pair[1].min_ms / pair[0].min_ms, default=(exact, None))

    def share(self, figures: Figures, *, without: str = "") -> float:
        """Share of the roofline, by the fastest run and the bandwidth that was measured between the runs."""
        roofline = Roofline.from_data(self.data["roofline"])
        roofline = dataclasses.replace(roofline, bandwidths={"": self.data["read_gb_per_s"] * 1e9})
        arithmetic = FORMATS[self.data["format"]].arithmetic
        least = roofline.seconds(figures.operations, figures.bytes_read, arithmetic, without=without)
        return least * 1e3 / figures.min_ms

    def _figures(self, name: str, figures: dict[str, Any]) -> Figures:
        layer = LAYERS[self.data["layer"]]
        bytes_read = self.data["active_experts"] * layer.weights_per_expert * figures["bits"] / 8
        operations = layer.operations(self.data["tokens"])
        return Figures(
            name, figures["min_ms"], figures["median_ms"], figures["error"], figures["bits"], operations, bytes_read
        )


def write(results: Results, output: pathlib.Path) -> None:
    """Write ``output`` with the suffixes .md and, if matplotlib is installed, .svg."""
    cells = [Cell(data) for data in results]
    if not cells:
        return
    output.with_suffix(".md").write_text("\n".join(_markdown(cells)) + "\n")
    if importlib.util.find_spec("matplotlib") is None:
        print("matplotlib is not installed: no picture")
        return
    _draw(cells, output.with_suffix(".svg"))


def _markdown(cells: list[Cell]) -> Iterator[str]:
    yield "# One MoE layer"
    yield ""
    yield from _summary(cells)
    for (layer, form), group in _grouped(cells):
        yield ""
        yield f"## {LAYERS[layer]}, {form}"
        yield ""
        yield from _main_table(group)
        yield ""
        yield from _contestants_table(group)
        absent = {name: reason for cell in group for name, reason in cell.data["absent"].items()}
        if absent:
            yield ""
            yield "Absent: " + "; ".join(f"{name}: {reason}" for name, reason in absent.items()) + "."


def _summary(cells: list[Cell]) -> Iterator[str]:
    roofline = Roofline.from_data(cells[-1].data["roofline"])
    read = ", ".join(f"{value / 1e9:.1f} ({pages})" for pages, value in roofline.bandwidths.items())
    peaks = ", ".join(
        f"{peak.arithmetic} {peak.unit} {peak.operations_per_second / 1e9:.0f}" for peak in roofline.peaks
    )
    yield f"{roofline.threads} threads. Memory, GB/s read: {read}. Peaks, 10^9 operations per second: {peaks}."
    yield ""
    yield (
        "Times are milliseconds, minimum / median; ratios and rates are of minima. A share of 1 is the roofline: the "
        "longer of the time to read the active experts' weights, at the bandwidth measured between the runs, and the "
        "time to compute, at the peak of the format's arithmetic."
    )
    ratios = [cell.speed_up for cell in cells if cell.speed_up is not None]
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        slower = sum(ratio < 1 for ratio in ratios)
        yield ""
        yield f"Best peer / moec: geometric mean {mean:.2f} over {len(ratios)} cells; moec is slower in {slower}."


def _grouped(cells: Iterable[Cell]) -> Iterator[tuple[tuple[str, str], list[Cell]]]:
    """Group cells by layer and format, in the benchmark's order."""
    layers, forms = list(LAYERS), list(FORMATS)

    def place(cell: Cell) -> tuple[int, int, int]:
        return layers.index(cell.data["layer"]), forms.index(cell.data["format"]), cell.data["tokens"]

    ordered = sorted(cells, key=place)
    for key, group in itertools.groupby(ordered, lambda cell: (cell.data["layer"], cell.data["format"])):
        yield key, list(group)


def _main_table(group: list[Cell]) -> Iterator[str]:
    amx = any(peak["unit"] == "AMX" for cell in group for peak in cell.data["roofline"]["peaks"])
    heads = ["tokens", "moec", "best peer", "", "peer / moec", "Gop/s", "GB/s", "share", "peer's share"]
    heads += ["share without AMX"] if amx else []
    yield from _table_head([*heads, "error", "peer's error"])
    for cell in group:
        moec, peer = cell.moec, cell.best_peer
        row = [
            str(cell.data["tokens"]),
            moec.times if moec else "-",
            peer.name if peer else "-",
            peer.times if peer else "-",
            f"**{cell.speed_up:.2f}**" if cell.speed_up else "-",
            *(moec.rates if moec else ("-", "-")),
            f"{cell.share(moec):.2f}" if moec else "-",
            f"{cell.share(peer):.2f}" if peer else "-",
        ]
        row += [f"{cell.share(moec, without='AMX'):.2f}" if moec else "-"] if amx else []
        row += [f"{figures.error:.2g}" if figures else "-" for figures in (moec, peer)]
        yield f"| {' | '.join(row)} |"


def _contestants_table(group: list[Cell]) -> Iterator[str]:
    yield from _table_head(["contestant", "bits", *(f"T={cell.data['tokens']}" for cell in group), "error"])
    bits = {name: figures.bits for cell in group for name, figures in cell.contestants.items()}
    for name in bits:
        present = [cell.contestants.get(name) for cell in group]
        error = max(figures.error for figures in present if figures)
        times = (figures.times if figures else "-" for figures in present)
        yield f"| {name} | {bits[name]:.2f} | {' | '.join(times)} | {error:.2g} |"


def _table_head(heads: list[str]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|" + " --- |" * len(heads)


def _draw(cells: list[Cell], path: pathlib.Path) -> None:
    """Plot shares of the roofline over the number of tokens: one panel per layer and format, moec and its best peer."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    layers = [name for name in LAYERS if any(cell.data["layer"] == name for cell in cells)]
    forms = [name for name in FORMATS if any(cell.data["format"] == name for cell in cells)]
    size = (2.2 * len(forms) + 1, 1.8 * len(layers) + 1)
    figure, axes = pyplot.subplots(len(layers), len(forms), figsize=size, sharex=True, sharey=True, squeeze=False)
    for (layer, form), group in _grouped(cells):
        panel = axes[layers.index(layer)][forms.index(form)]
        for label, style, choose in (
            ("moec", "o-", lambda cell: cell.moec),
            ("best peer", "s--", lambda c: c.best_peer),
        ):
            points = [(cell.data["tokens"], cell.share(choose(cell))) for cell in group if choose(cell)]
            panel.plot(*zip(*points, strict=True) if points else ([], []), style, label=label, markersize=3)
        panel.set_xscale("log", base=4)
        panel.set_ylim(0, 1.2)
        panel.axhline(1, color="gray", linewidth=0.5)
    for panel, form in zip(axes[0], forms, strict=True):
        panel.set_title(form)
    for row, layer in zip(axes, layers, strict=True):
        row[0].set_ylabel(layer)
    axes[0][0].legend(fontsize="small")
    figure.supxlabel("tokens")
    figure.suptitle("Share of the roofline")
    figure.tight_layout()
    figure.savefig(path)
