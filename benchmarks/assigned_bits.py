"""Cost of a bit budget to a language model: formats by assign-bits against the best single format of the same size.

    python benchmarks/assigned_bits.py MODEL --profile P --tokenizer T --judge brown.heldout.txt python.heldout.txt

The size is that of the experts' weights, scales and all: a plan of so many bits on average with scales for groups of 32
takes half a bit more. Every single format of whole numbers that fits is a rival, whatever its groups, with zero points
or without; for each text the best of them counts, as seen on that text. All are rounded by GPTQ with the same profile
and run by the interpreter. Prints the Kullback-Leibler divergence from the model in float32, and how much more that and
the loss are than the rival's, in nats per token with 95% confidence intervals, paired by row. Results are kept in
``--output``, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.divergence import divergences, log_softmax
from moec.common.specs import tensor_specs
from moec.compiling import compiler
from moec.ir.interpreter import runner
from moec.ir.weights.format import WeightFormat
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.passes.framework.shorthand import parse_format
from moec.tools import paired
from moec.tools.data import Data, TextOptions

Array = np.ndarray[Any, Any]
RIVALS = ("int4/64", "int4/32", "int3/64", "int3/64z", "int3/32", "int3/32z", "int2/64", "int2/32", "int2/32z")
SCALES = 0.5
"""Bits of a weight's share in a scale of float16 for 32 of them."""


def rivals(average: float) -> list[str]:
    """List the single formats that are not larger than a plan of ``average`` bits; only those of the most bits."""
    forms = {text: parse_format("RIVALS", text) for text in RIVALS}
    fitting = {text: form.elements.bits for text, form in forms.items() if stored_bits(form) <= average + SCALES}
    return [text for text, bits in fitting.items() if bits == max(fitting.values())]


def stored_bits(form: WeightFormat) -> float:
    """Bits of a weight with its share in a scale and a zero point."""
    return form.elements.bits + (form.scale_bits + (form.elements.bits if form.zero_points else 0)) / form.group


def passes_of(name: str, profile: pathlib.Path) -> str:
    """Passes after O2 that make a variant: an average of bits, or a single format."""
    if name.startswith("assign"):
        return f"assign-bits{{avg={name.split()[1]},profile={profile}}}"
    form = parse_format("RIVALS", name)
    zeros = ",zero_points=true" if form.zero_points else ""
    return f"quantize-experts{{format={form.name},group={form.group}{zeros},method=gptq,profile={profile}}}"


def judged(graph: ir.Model, output: str, batches: list[dict[str, Array]]) -> Iterator[Array]:
    """Compute the model's logits [rows, length, classes] for every batch."""
    run = runner(graph)
    for batch in batches:
        yield run(batch)[output]


def sums_of(logits: Array, first: Array, ids: Array) -> tuple[Array, Array]:
    """Compute the loss and the divergence of each row, summed over its tokens except the last, in float64."""
    losses, apart = [], []
    for own, other, row in zip(logits[:, :-1], first[:, :-1], ids, strict=True):
        own = own.astype(np.float64)
        losses.append(-np.take_along_axis(log_softmax(own), row[1:, None], axis=-1).sum())
        apart.append(divergences(own, other.astype(np.float64)).sum())
    return np.array(losses), np.array(apart)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--profile", type=pathlib.Path, required=True)
    parser.add_argument("--judge", type=pathlib.Path, nargs="+", required=True, help="texts, or .npz files of ids")
    parser.add_argument("--tokenizer", type=pathlib.Path)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--avg", type=float, nargs="+", default=[2.5, 3.0, 3.5])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("assigned_bits.json"))
    options = parser.parse_args()
    results = json.loads(options.output.read_text()) if options.output.exists() else {}
    measure(options, results)
    for average in options.avg:
        for text in (path.name for path in options.judge):
            print(row(results, text, average), flush=True)


def measure(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Add missing results to ``results``: by variant and text the sums of every row, and the remarks of the passes."""
    base = compiler.import_model(options.model, cache=False)
    pipeline.run(base, pipeline.parse("O2"), Report())
    specs, output = tensor_specs(base.graph.inputs), str(base.graph.outputs[0].name)
    text = TextOptions(options.tokenizer, options.length, 8, options.rows)
    texts = {path.name: list(Data(path, specs, text)) for path in options.judge}
    first = {name: list(judged(base, output, batches)) for name, batches in texts.items()}
    names = [f"assign {average:g}" for average in options.avg] + sorted(
        {rival for a in options.avg for rival in rivals(a)}
    )
    for name in names:
        if all(text in results.get(name, {}) for text in texts):
            continue
        graph, report = base.clone(), Report()
        pipeline.run(graph, pipeline.parse(passes_of(name, options.profile)), report)
        of_name = results.setdefault(name, {"remarks": [remark.message for remark in report.remarks]})
        for text_name, batches in texts.items():
            ids = [next(iter(batch.values())) for batch in batches]
            sums_by_batch = map(sums_of, judged(graph, output, batches), first[text_name], ids)
            losses, apart = (np.concatenate(sums).tolist() for sums in zip(*sums_by_batch, strict=True))
            of_name[text_name] = {
                "loss": losses,
                "kl": apart,
                "tokens": [len(row) - 1.0 for batch in ids for row in batch],
            }
        options.output.write_text(json.dumps(results))


def row(results: dict[str, Any], text: str, average: float) -> str:
    """Write one row of the table."""
    own = results[f"assign {average:g}"]
    best = min(rivals(average), key=lambda name: sum(results[name][text]["kl"]))
    mine, other = own[text], results[best][text]
    counts = np.array(mine["tokens"])
    means = [sum(sums["kl"]) / counts.sum() for sums in (mine, other)]
    cells = [f"{mean:.5f}" for mean in means]
    for metric in ("kl", "loss"):
        more, interval = paired.difference(np.array(mine[metric]), np.array(other[metric]), counts)
        cells.append(f"{more:+.5f} ± {interval or 0:.5f}")
    taken = "uniform" if any(remark.endswith("for all is taken") for remark in own["remarks"]) else "plan"
    return f"| {average:g} | {text} | {cells[0]} | {best} {cells[1]} | {cells[2]} | {cells[3]} | {taken} |"


if __name__ == "__main__":
    main()
