"""The tables and data of ``moec inspect --launches``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from moec.common.tables import table
from moec.targets.cuda.launch_model.kernel_calls import PredictedLaunch
from moec.targets.cuda.launch_model.layers import PredictedLayer, PredictedModel
from moec.targets.cuda.launch_model.outside import PredictedOutside
from moec.targets.cuda.launch_model.plans import TilePlan, WarpPlan

_HEADINGS = (
    "launch",
    "blocks x threads",
    "registers, shared",
    "held at once (by)",
    "with work",
    "waves, filled",
    "MB memory, L2",
    "GFLOP",
    "issued",
    "predicted µs",
    "limit",
    "of roofline",
)


def launch_tables(model: PredictedModel) -> Iterator[RenderableType]:
    yield Text(
        f"Predicted for {model.gpu.name}, not measured: from published figures, tokens spread evenly over experts, "
        "kernels of a captured graph one after another. docs/design/gpu.md says what the model knows."
    )
    for layer in model.layers:
        rows = [_cells(launch) for launch in layer.launches]
        share = layer.least / layer.seconds
        title = f"{layer.node}, {layer.tokens} tokens: {_in_words(layer)}, {share:.0%} of roofline"
        yield table(title, _HEADINGS, rows)
    for outside in model.outside:
        cells = [(*_cells(repeated.launch), str(repeated.calls)) for repeated in outside.launches]
        title = f"Outside of layers of experts, {outside.tokens} tokens: {_in_words(outside)}"
        yield table(title, (*_HEADINGS, "calls"), cells)
        inside = [layer.seconds for layer in model.layers if layer.tokens == outside.tokens]
        if inside:
            total = _us(outside.seconds + sum(inside))
            yield Text(f"With {len(inside)} layers of experts, {outside.tokens} tokens: predicted {total} µs")
    if model.others:
        title = f"Not predicted: {len(model.others)} kernels, whose launches take time, too"
        cells = [_other_cells(kernel) for kernel in model.others]
        yield table(title, ("kernel", "operators", "nodes"), cells)


def launch_data(model: PredictedModel) -> dict[str, Any]:
    """The predictions as plain data, in seconds and bytes."""
    return {
        "gpu": model.gpu.name,
        "spread": "balanced",
        "predicted": [
            {
                "node": layer.node,
                "tokens": layer.tokens,
                "seconds": layer.seconds,
                "operations": layer.operations,
                "share_of_roofline": layer.least / layer.seconds,
                "launches": [_launch_data(launch) for launch in layer.launches],
            }
            for layer in model.layers
        ],
        "outside": [
            {
                "tokens": outside.tokens,
                "seconds": outside.seconds,
                "operations": outside.operations,
                "launches": [
                    {**_launch_data(repeated.launch), "calls": repeated.calls} for repeated in outside.launches
                ],
            }
            for outside in model.outside
        ],
        "not_predicted": [
            {
                "kernel": kernel["name"],
                "op": kernel["op"],
                "nodes": kernel["nodes"],
                "functions": [launch["function"] for launch in kernel["launches"]],
            }
            for kernel in model.others
        ],
    }


def _in_words(predicted: PredictedLayer | PredictedOutside) -> str:
    rate = f", {predicted.operations / predicted.seconds / 1e12:.3g} TFLOP/s" if predicted.operations else ""
    return f"predicted {_us(predicted.seconds)} µs{rate}"


def _launch_data(launch: PredictedLaunch) -> dict[str, Any]:
    facts, prediction = launch.facts, launch.prediction
    return {
        "function": launch.function,
        "blocks": facts.blocks,
        "threads": facts.threads,
        "registers": facts.registers,
        "shared_bytes": facts.shared_bytes,
        "blocks_at_once": prediction.occupancy.blocks,
        "warps_at_once": prediction.occupancy.warps,
        "occupancy_limit": prediction.occupancy.limit,
        "blocks_with_work": prediction.blocks,
        "waves": prediction.waves,
        "tail": prediction.tail,
        "memory_bytes": prediction.traffic.memory,
        "l2_bytes": prediction.traffic.l2,
        "operations": prediction.operations,
        "issued_per_step": None if facts.issued is None else facts.issued.per_step,
        "seconds": prediction.seconds,
        "limit": prediction.limit,
        "share_of_roofline": prediction.roofline,
    }


def _cells(launch: PredictedLaunch) -> tuple[str, ...]:
    facts, prediction = launch.facts, launch.prediction
    held = prediction.occupancy
    return (
        launch.function.removesuffix("_kernel"),
        f"{facts.blocks} x {facts.threads}",
        f"{facts.registers}, {facts.shared_bytes / 1024:.1f} KiB",
        f"{held.blocks} ({held.limit})",
        str(prediction.blocks),
        f"{prediction.waves}, {prediction.tail:.0%}",
        f"{_mb(prediction.traffic.memory)}, {_mb(prediction.traffic.l2)}",
        f"{prediction.operations / 1e9:.3g}" if prediction.operations else "-",
        _issued(launch),
        _us(prediction.seconds),
        prediction.limit,
        f"{prediction.roofline:.0%}",
    )


def _other_cells(kernel: Mapping[str, Any]) -> tuple[str, ...]:
    return kernel["name"], kernel["op"], str(len(kernel["nodes"]))


def _issued(launch: PredictedLaunch) -> str:
    """Instructions of all warps per k-tile or tile of keys, or of a lane per weight; a dash if they were not
    counted."""
    issued, plan = launch.facts.issued, launch.plan
    if issued is None:
        return "-"
    if isinstance(plan, WarpPlan):
        return f"{issued.per_step / (plan.columns * plan.inputs):.1f} per weight"
    return f"{issued.per_step:.0f} per {'k-tile' if isinstance(plan, TilePlan) else 'tile'}"


def _mb(size: float) -> str:
    return f"{size / 1e6:.3g}" if size < 1e9 else f"{size / 1e6:.0f}"


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.1f}" if seconds < 1e-3 else f"{seconds * 1e6:.0f}"
