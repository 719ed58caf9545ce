"""The tables and data of ``moec inspect --launches``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from moec.common.tables import table
from moec.targets.cuda.estimates.host import GRAPH_LAUNCH_SECONDS, LAUNCH_SECONDS, RUN_SECONDS
from moec.targets.cuda.estimates.launches import LaunchEstimate, LaunchGroup, ModelEstimate

_HEADINGS = (
    "launch",
    "calls",
    "blocks x threads",
    "registers, shared",
    "held at once (by)",
    "waves",
    "MB",
    "GFLOP",
    "least µs",
    "limit",
)
_FIGURES = (
    ("calls, blocks, threads, waves", "computed from the program", "not needed"),
    ("registers, shared", "reported by ptxas", "not needed"),
    ("held at once", "computed from published limits of the GPU", "never"),
    ("MB, GFLOP", "counted; experts as many as tokens are expected to draw", "never"),
    ("least µs, limit", "predicted: operations and bytes at published peaks", "never"),
    (
        "µs in a graph",
        f"predicted: {GRAPH_LAUNCH_SECONDS * 1e6:g} µs for each launch, as others measured on an H100",
        "never",
    ),
    (
        "µs of the host",
        f"predicted: {LAUNCH_SECONDS * 1e6:g} µs for each launch, {RUN_SECONDS * 1e6:g} µs for each run",
        "never",
    ),
)
"""Figures of the tables, their sources, and whether they were ever measured on a GPU."""


def launch_tables(model: ModelEstimate) -> Iterator[RenderableType]:
    yield Text(
        f"Least times on {model.gpu.name}, not measured: operations and bytes at the published peaks, experts drawn "
        "at random. docs/design/gpu.md says what they leave out."
    )
    for group in (*model.layers, *model.outside):
        name = "Outside of layers of experts" if group.node is None else group.node
        title = f"{name}, {group.tokens} tokens: {_in_words(group)}"
        yield table(title, _HEADINGS, [_cells(launch) for launch in group.launches])
    title = "A run, with all layers; without a captured graph it takes the longer of the times of GPU and host"
    cells = [
        (str(run.tokens), str(run.launches), *map(_us, (run.seconds, run.graph_seconds, run.host_seconds)))
        for run in model.runs
    ]
    yield table(title, ("tokens", "launches", "least µs on the GPU", "least µs in a graph", "µs of the host"), cells)
    if model.fixed_lengths:
        yield Text(f"Sessions run without captured graphs, because of {_listed(model.fixed_lengths)}; see the remarks.")
    if model.others:
        title = f"Not estimated: {len(model.others)} kernels, whose sizes are computed at run time"
        cells = [(kernel["name"], kernel["op"], str(len(kernel["nodes"]))) for kernel in model.others]
        yield table(title, ("kernel", "operators", "nodes"), cells)
    yield table("Where figures come from", ("figure", "source", "measured on a GPU"), _FIGURES)


def launch_data(model: ModelEstimate) -> dict[str, Any]:
    """The estimates as plain data, in seconds and bytes."""
    return {
        "gpu": model.gpu.name,
        "roofline": model.gpu.roofline.as_data(),
        "warps": model.gpu.warps,
        "measured": False,
        "spread": "drawn",
        "figures": [dict(zip(("figure", "source", "measured"), figure, strict=True)) for figure in _FIGURES],
        "sessions_without_graphs_for": list(model.fixed_lengths),
        "runs": [dataclasses.asdict(run) for run in model.runs],
        "layers": [_group_data(group) for group in model.layers],
        "outside": [_group_data(group) for group in model.outside],
        "not_estimated": [
            {
                "kernel": kernel["name"],
                "op": kernel["op"],
                "nodes": kernel["nodes"],
                "functions": [launch["function"] for launch in kernel["launches"]],
            }
            for kernel in model.others
        ],
    }


def _group_data(group: LaunchGroup) -> dict[str, Any]:
    return {
        "node": group.node,
        "tokens": group.tokens,
        "least_seconds": group.seconds,
        "operations": group.operations,
        "launches": [_launch_data(launch) for launch in group.launches],
    }


def _launch_data(launch: LaunchEstimate) -> dict[str, Any]:
    return {
        "kernel": launch.kernel,
        "function": launch.function,
        "calls": launch.calls,
        "blocks": launch.blocks,
        "threads": launch.threads,
        "registers": launch.registers,
        "shared_bytes": launch.shared_bytes,
        "blocks_at_once": launch.occupancy.blocks,
        "warps_at_once": launch.occupancy.warps,
        "occupancy_limit": launch.occupancy.limit,
        "waves": launch.waves,
        "bytes_moved": launch.work.bytes_moved,
        "operations": launch.work.operations,
        "arithmetic": launch.work.arithmetic,
        "least_seconds": launch.seconds,
        "limit": launch.limit,
        "weights": None if launch.reads is None else dataclasses.asdict(launch.reads),
    }


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _in_words(group: LaunchGroup) -> str:
    rate = f", at most {group.operations / group.seconds / 1e12:.3g} TFLOP/s" if group.operations else ""
    return f"at least {_us(group.seconds)} µs{rate}"


def _cells(launch: LaunchEstimate) -> tuple[str, ...]:
    operations, moved = launch.work.operations, launch.work.bytes_moved
    return (
        launch.function.removesuffix("_kernel"),
        str(launch.calls),
        f"{launch.blocks} x {launch.threads}",
        f"{launch.registers}, {launch.shared_bytes / 1024:.1f} KiB",
        f"{launch.occupancy.blocks} ({launch.occupancy.limit})",
        str(launch.waves),
        f"{moved / 1e6:.3g}" if moved < 1e9 else f"{moved / 1e6:.0f}",
        f"{operations / 1e9:.3g}" if operations else "-",
        _us(launch.seconds),
        launch.limit,
    )


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.3g}" if seconds < 1e-3 else f"{seconds * 1e6:.0f}"
