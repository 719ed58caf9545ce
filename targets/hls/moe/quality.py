"""The error of an integer block against its floats: signal to noise per tensor, and the share of equal routing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moec.targets.hls.moe import reference
from moec.targets.hls.moe.float_block import FloatBlock
from moec.targets.hls.moe.quantize import GATE_ONE, QuantizedBlock

Array = np.ndarray[Any, Any]

LEAST_DECIBELS = 10.0
"""The least signal to noise of an output; below it, the noise is a third of the signal. All examples with int4 weights,
rounded to nearest, have 13 or more."""


@dataclasses.dataclass(frozen=True)
class Quality:
    """The error of a block in integers. ``decibels``: signal over quantisation noise by tensor; None without noise or
    signal. Tensors of pairs count only the pairs that both forms chose. ``agreement``: the share of these pairs."""

    decibels: dict[str, float | None]
    agreement: float
    tokens: int


def compare(block: FloatBlock, quantized: QuantizedBlock, tokens: Array) -> Quality:
    """Compare a block with its integers on float tokens [N, d]."""
    floats = block.run(tokens)
    steps = quantized.quantized(tokens)
    integers = reference.run(quantized, steps)
    gates, scattered_gates = np.zeros(floats.logits.shape), np.zeros(floats.logits.shape)
    np.put_along_axis(gates, floats.chosen, floats.gates, axis=1)
    integer_gates = integers.gates * (block.routing.scale / GATE_ONE)
    np.put_along_axis(scattered_gates, integers.chosen, integer_gates, axis=1)
    alike = (gates != 0) & (scattered_gates != 0)
    ours, theirs = (_pairs(chosen, alike, block.shared) for chosen in (floats.chosen, integers.chosen))
    decibels = {
        "tokens": signal_to_noise(floats.inputs, integers.inputs * quantized.input_scale),
        "logits": signal_to_noise(floats.logits, integers.logits * quantized.logit_scale),
        "gates": signal_to_noise(gates[alike], scattered_gates[alike]),
        "hidden": signal_to_noise(floats.hidden[ours], integers.hidden[theirs] * quantized.hidden_scale),
        "results": signal_to_noise(floats.results[ours], integers.results[theirs] * quantized.result_scale),
        "output": signal_to_noise(floats.output, integers.output * quantized.output_scale),
    }
    pairs = floats.chosen.size
    return Quality(decibels, float(alike.sum()) / pairs if pairs else 1.0, len(tokens))


def compare_outputs(floats: Mapping[str, Array], integers: Mapping[str, Array]) -> dict[str, dict[str, float | None]]:
    """Compare the outputs of a model, by name: signal to noise, and the share of rows of the last axis with the largest
    number at the same place."""
    report = {}
    for name, expected in floats.items():
        answers = [
            array.reshape(-1, array.shape[-1]).argmax(axis=1) for array in (expected, integers[name]) if array.ndim
        ]
        same = float((answers[0] == answers[1]).mean()) if answers and len(answers[0]) else None
        report[name] = {"decibels": signal_to_noise(expected, integers[name]), "same_largest": same}
    return report


def too_noisy(reports: Sequence[Mapping[str, Any]]) -> str | None:
    """A warning about projects whose integers are far from the floats on the calibration data, by their reports; None
    where all are near. Each layer is measured on its input in the graph, so errors of earlier layers do not count."""
    outputs = {name: entry["decibels"] for report in reports for name, entry in report["model_outputs"].items()}
    layers = {entry["node"]: entry["decibels"] for report in reports for entry in _layers(report)}
    worst = [
        (what, *min(measured, key=lambda pair: pair[1]))
        for what, ratios in (("the output", outputs), ("worst of all layers", layers))
        if (measured := [(name, ratio) for name, ratio in ratios.items() if ratio is not None])
    ]
    if all(ratio >= LEAST_DECIBELS for *_, ratio in worst):
        return None
    said = ", ".join(f"{what} {name!r} has {ratio:.1f} dB" for what, name, ratio in worst)
    return (
        f"DO NOT USE THESE PROJECTS: their integers are far from the floats on the calibration data: {said}; expected "
        f"{LEAST_DECIBELS:g} at least. Calibrate with numbers as the model takes them; look in that layer for channels "
        "or results that are thousands of times as large as others, which leave the rest no steps; give int4 weights "
        "8 bits. moec inspect shows all figures"
    )


def _layers(report: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The layers of a project with their decibels: of a whole model, or its single block."""
    of_block = {"node": report["node"], "decibels": report["quality"]["decibels"].get("output")}
    return report.get("layers", [of_block])


def signal_to_noise(expected: Array, actual: Array) -> float | None:
    """Signal to noise in dB; None without noise or signal. Numbers that are the same infinity in both, as logits of ids
    that a graph rules out, do not count."""
    counts = ~(np.isinf(expected) & (expected == actual))
    expected, actual = expected[counts].astype(np.float64), actual[counts]
    signal, noise = float(np.square(expected).sum()), float(np.square(expected - actual).sum())
    return 10 * math.log10(signal / noise) if signal and noise else None


def _pairs(chosen: Array, alike: Array, shared: int) -> Array:
    """Whether both forms chose a pair, for each pair by expert and then by token: bool [P]. ``alike`` [T, E]: pairs
    chosen by both."""
    parts = [alike[np.nonzero(chosen == expert)[0], expert] for expert in range(alike.shape[1])]
    return np.concatenate([*parts, *[np.ones(len(alike), bool)] * shared])
