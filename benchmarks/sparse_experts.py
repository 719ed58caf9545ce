"""Speed-up by zeros: experts most of whose hidden units have no effect, and experts whose ReLU is mostly zero.

    python benchmarks/sparse_experts.py [--zeros 0.9] [--tokens 1 4 16 64] [--threads 2] [--json FILE]

The layer ``switch`` of layers.py (ReLU, top-1) in fp32, three times with the same shapes:

- ``dense``: hardly any hidden value is zero, for the biases are positive;
- ``units``: a share of the columns of the down projection is zero, other ones in every expert. moec's pass
  drop-zero-neurons removes these units;
- ``activations``: the biases make the same share of the hidden values zero, other ones for every token. For few tokens
  moec reads the other rows of the down projection only. The up projection stays as it is, so that the whole layer can
  at best become twice as fast.

moec and onnxruntime's ``com.microsoft.MoE`` run in turn. The last columns are moec's two products alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import statistics
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from layers import LAYERS, Case, Layer, make_cases
from peers import onnx_layer
from results import print_rows
from timing import interleaved, summary, timed

VARIANTS = ("dense", "units", "activations")
KERNEL_RUNS = 32


def make_model(path: pathlib.Path, layer: Layer, variant: str, zeros: float) -> None:
    random = np.random.default_rng(0)
    up = random.standard_normal((layer.experts, layer.hidden, layer.width), dtype=np.float32)
    down = random.standard_normal((layer.experts, layer.width, layer.hidden), dtype=np.float32)
    positive = 1 - zeros if variant == "activations" else 0.999
    bias = statistics.NormalDist().inv_cdf(positive) * np.sqrt(layer.width)
    if variant == "units":
        for expert in down:
            expert[:, random.permutation(layer.hidden)[: round(zeros * layer.hidden)]] = 0
    biases = np.full((layer.experts, layer.hidden), bias, np.float32)
    onnx_layer.save(path, layer, "MoE", {"fc1": up, "fc1_bias": biases, "fc2": down}, {})


def onnxruntime_session(path: pathlib.Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def contestants(layer: Layer, variant: str, zeros: float, threads: int) -> dict[str, Any]:
    """Make the compiled model and onnxruntime's session."""
    import moec

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "layer.onnx")
        make_model(path, layer, variant, zeros)
        return {"moec": moec.compile(str(path), threads=threads), "onnxruntime": onnxruntime_session(path, threads)}


def measure(layer: Layer, tokens: int, built: dict[str, dict[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """Measure a row for each variant."""
    cases = make_cases(layer, tokens, most=16)
    calls, results = {}, {}
    for variant, runners in built.items():
        for name in ("moec", "onnxruntime"):
            run = _runner(name, runners[name])
            results[variant, name] = run(cases[0])
            calls[f"{variant} {name}"] = _turns(run, cases)
    times = {name: summary(values) for name, values in interleaved(calls, seconds).items()}
    products = {variant: product_times(runners["moec"], cases) for variant, runners in built.items()}
    rows = []
    for variant in built:
        ours, theirs = (times[f"{variant} {name}"] for name in ("moec", "onnxruntime"))
        rows.append(
            {
                "tokens": tokens,
                "variant": variant,
                "moec min ms": ours["min_ms"],
                "moec median ms": ours["median_ms"],
                "onnxruntime min ms": theirs["min_ms"],
                "onnxruntime median ms": theirs["median_ms"],
                "onnxruntime / moec": theirs["median_ms"] / ours["median_ms"],
                "dense / this": times["dense moec"]["median_ms"] / ours["median_ms"],
                "up ms": products[variant]["up"],
                "down ms": products[variant]["down"],
                "down: dense / this": products["dense"]["down"] / products[variant]["down"],
                "difference": _difference(results[variant, "moec"], results[variant, "onnxruntime"]),
            }
        )
    return rows


def product_times(model: Any, cases: Sequence[Case]) -> dict[str, float]:
    """Median milliseconds of the two products."""
    products = [name for name, kernel in model.kernels.items() if "formats" in kernel.attributes]
    times: dict[str, list[float]] = {name: [] for name in products}
    for case in itertools.islice(itertools.cycle(cases), KERNEL_RUNS):
        for name, seconds in model.probe.time_kernels({"x": case.x, "logits": case.logits}):
            if name in times:
                times[name].append(seconds)
    up, down = (statistics.median(times[name]) * 1e3 for name in products)
    return {"up": up, "down": down}


def _runner(name: str, built: Any) -> Callable[[Case], np.ndarray]:
    if name == "moec":
        return lambda case: built.run({"x": case.x, "logits": case.logits})["y"]
    return lambda case: built.run(None, {"x": case.x, "logits": case.logits})[0]


def _turns(run: Callable[[Case], np.ndarray], cases: Sequence[Case]) -> Callable[[], float]:
    """Make a call that takes the next case each time, so that every repetition meets other experts."""
    turns = itertools.cycle(cases)
    return timed(lambda: run(next(turns)))


def _difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest number."""
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zeros", type=float, default=0.9, help="share of zero units and of zero activations")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=3.0, help="least time per contestant, variant and size")
    parser.add_argument("--json")
    args = parser.parse_args()
    layer = LAYERS["switch"]
    built = {variant: contestants(layer, variant, args.zeros, args.threads) for variant in VARIANTS}
    rows = [row for tokens in args.tokens for row in measure(layer, tokens, built, args.seconds)]
    print(f"{layer}, fp32, {args.threads} threads, {args.zeros:.0%} zeros\n")
    print_rows(rows)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
