"""Speed-up by fewer and mixed bits: one MoE layer with experts in four, three and two bits, and in both.

    python benchmarks/mixed_bits.py [--layer granite] [--tokens 1 4 16 256] [--threads 2] [--json FILE]

Scales are shared by 32 weights everywhere. ``halves``: the first half of the experts in int4, the others in int3, which
are 3.5 bits on average; ``in turns``: every other expert. Where all experts have equally many tokens, such a layer
should take the mean of the times of its parts; a layer in fewer bits, where memory binds, the share of its bytes.

All models run in turn, on other experts each time, so that weights come from memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from layers import LAYERS, PASSES, Case, Layer, Weights, make_cases
from peers import onnx_layer
from results import print_rows
from timing import interleaved, summary, timed

from moec.common.cores import available_cores
from moec.targets.cpu.roofline import MemoryReader

PLAIN = ("int4", "int3", "int2")
BASE = PLAIN[0]
PARTS = ("int4", "int3")
"""Formats of the two halves of a mixed layer."""


def pipelines(layer: Layer) -> dict[str, str]:
    """Passes by the name of the model that they make."""
    first, second = (f"quantize-experts{{format={form},group=32" for form in PARTS)
    groups = {
        "halves": f"0-{layer.experts // 2 - 1}",
        "in turns": "+".join(map(str, range(0, layer.experts, 2))),
    }
    mixed = {name: f"{PASSES},{first},experts={ids}}},{second}}}" for name, ids in groups.items()}
    return {**{form: f"{PASSES},quantize-experts{{format={form},group=32}}" for form in PLAIN}, **mixed}


def compiled(layer: Layer, threads: int) -> dict[str, Any]:
    import moec

    with tempfile.TemporaryDirectory() as folder:
        weights = Weights(layer, pathlib.Path(folder))
        weights.make()
        path = str(onnx_layer.moe_model(weights))
        return {name: moec.compile(path, passes=passes, threads=threads) for name, passes in pipelines(layer).items()}


def measure(
    layer: Layer, tokens: int, models: dict[str, Any], reader: MemoryReader, seconds: float
) -> list[dict[str, Any]]:
    """Measure a row for each model. The expected time is int4's by the share of bytes, or the mean of the parts'
    times."""
    cases = make_cases(layer, tokens, most=16)
    times = interleaved({name: _turns(model, cases) for name, model in models.items()}, seconds, 9, reader.read)
    figures = {name: summary(values) for name, values in times.items()}
    stored = {name: sum(weight["bytes"] for weight in model.describe()["weights"]) for name, model in models.items()}
    rows = []
    for name, figure in figures.items():
        row: dict[str, Any] = {"tokens": tokens, "experts in": name, "MB": stored[name] / 1e6, **figure}
        for kind in figure:
            if name in PLAIN:
                expected = figures[BASE][kind] * stored[name] / stored[BASE]
            else:
                expected = sum(figures[part][kind] for part in PARTS) / len(PARTS)
            row[f"{kind} / expected"] = figure[kind] / expected
        rows.append({**row, "expected by": "bytes" if name in PLAIN else "parts"})
    return rows


def _turns(model: Any, cases: Sequence[Case]) -> Callable[[], float]:
    """Make a call that takes the next case each time, so that every repetition meets other experts."""
    turns = itertools.cycle(cases)

    def call() -> None:
        case = next(turns)
        model.run({"x": case.x, "logits": case.logits})

    return timed(call)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", choices=LAYERS, default="granite")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16, 256])
    parser.add_argument("--threads", type=int, default=len(available_cores()))
    parser.add_argument("--seconds", type=float, default=2.0, help="least time per model and size")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    layer, reader = LAYERS[args.layer], MemoryReader(args.threads)
    models = compiled(layer, args.threads)
    rows = [row for tokens in args.tokens for row in measure(layer, tokens, models, reader, args.seconds)]
    print(f"{layer}, {args.threads} threads\n")
    print_rows(rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
