"""Placements of a model's experts, planned from the first half of a trace and judged on the second half.

    python benchmarks/placements.py MODEL DATA [--tokenizer FILE] [--rows N] [--ranks 4] [--replicas 0,4] [--slack 0,1]

The trace has the experts of every token of DATA. Plans see sums over its first half: loads in four windows of time,
pairs of experts that tokens select together, and successors in the next layer. Judges count the second half
(``moec/placing/judge.py``): *imbalance*, the highest load of a rank over the mean; *crossing*, the share of pairs that
are computed on two ranks. Both are means of layers.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
import tempfile
import time
from typing import Any

import numpy as np
from results import print_rows

import moec
from moec.common.specs import tensor_specs
from moec.compiling import compiler
from moec.compiling.compile_options import CompileOptions
from moec.ir.dialect import has_experts
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.placing.judge import following_of, imbalance, judge, pairs_of, rank_loads
from moec.placing.place import place
from moec.placing.placement import ExpertPlacement
from moec.tools.data import Data, TextOptions
from moec.tools.profiling.taps import observe

WINDOWS = 4
Trace = np.ndarray


def traces_of(model: pathlib.Path, data: pathlib.Path, text: TextOptions) -> tuple[list[Trace], list[int]]:
    """Run the model on data. Returns the experts [T,k] of its tokens and the number of experts, for each layer."""
    graph = compiler.import_model(model, cache=False)
    inputs = tensor_specs(graph.graph.inputs)
    pipeline.run(graph, pipeline.parse("O2"), Report())
    taps = [tap for tap in observe(graph.graph) if has_experts(tap.node)]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "observed.moec"
        compiler.write(graph, path, CompileOptions(passes=""))
        compiled = moec.load(path)
        parts: list[list[Trace]] = [[] for _ in taps]
        for batch in Data(data, inputs, text):
            outputs = compiled.run(batch)
            for own, tap in zip(parts, taps, strict=True):
                own.append(tap.routed(outputs)[1])
    experts = [block["num_experts"] for block in compiled.describe()["moe_blocks"]]
    return [np.concatenate(own) for own in parts], experts


def planned(
    traces: list[Trace], experts: list[int], ranks: int, replicas: int, method: Any, slack: float
) -> ExpertPlacement:
    """Place experts by sums over traces."""
    sized = list(zip(traces, experts, strict=True))
    loads = [np.stack([_counts(part, count) for part in np.array_split(own, WINDOWS)]) for own, count in sized]
    pairs = [pairs_of(own, count) for own, count in sized]
    following = [
        following_of(own, after, count, count_after) for (own, count), (after, count_after) in itertools.pairwise(sized)
    ]
    return place(loads, ranks, 1, replicas, pairs, [*following, None], method, slack=slack)


def _counts(trace: Trace, experts: int) -> np.ndarray:
    return np.bincount(trace[trace >= 0], minlength=experts)


def judged(placement: ExpertPlacement, traces: list[Trace]) -> np.ndarray:
    """Judge each layer: [layers, 2] of imbalance and crossing."""
    layers = zip(judge(placement, traces), placement.layers, traces, strict=True)
    return np.array(
        [(imbalance(rank_loads(layer, _counts(own, layer.experts))), result.crossing) for result, layer, own in layers]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--tokenizer", type=pathlib.Path)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--replicas", default="0,4,8")
    parser.add_argument("--slack", default="0")
    arguments = parser.parse_args()
    text = TextOptions(arguments.tokenizer, 128, 8, arguments.rows)
    traces, experts = traces_of(arguments.model, arguments.data, text)
    print_rows(compared(traces, experts, arguments.ranks, arguments.replicas, arguments.slack))


def compared(traces: list[Trace], experts: list[int], ranks: int, replicas: str, slacks: str) -> list[dict[str, Any]]:
    """Compare the methods; ``replicas`` and ``slacks`` are lists with commas."""
    halves = [[own[: len(own) // 2] for own in traces], [own[len(own) // 2 :] for own in traces]]
    cases: list[tuple[Any, int, float]] = [("linear", 0, 0.0)]
    for count in map(int, replicas.split(",")):
        cases += [("eplb", count, 0.0), *(("joint", count, float(slack)) for slack in slacks.split(","))]
    rows, base, of_eplb = [], np.nan, np.zeros(0)
    for method, count, slack in cases:
        start = time.process_time()
        placement = planned(halves[0], experts, ranks, count, method, slack)
        seconds = time.process_time() - start
        scores = judged(placement, halves[1])
        balance, crossing = scores.mean(axis=0)
        base = crossing if method == "linear" else base
        of_eplb = scores[:, 0] if method == "eplb" else of_eplb
        worse = int((scores[:, 0] > of_eplb + 1e-9).sum()) if method == "joint" else ""
        rows.append(
            {
                "method": method,
                "replicas": count,
                "slack": slack,
                "imbalance": f"{balance:.3f}",
                "layers worse than EPLB": worse,
                "crossing": f"{crossing:.3f}",
                "below linear": f"{1 - crossing / base:.0%}",
                "seconds": f"{seconds:.2f}",
            }
        )
    return rows


if __name__ == "__main__":
    main()
