"""The experts of one layer of a model of transformers in eager PyTorch: by moec, and by transformers' own ways.

    python benchmarks/eager_experts.py [--layer granite] [--tokens 1 128] [--formats int8 int4/32] [--threads 2]

The module is ``GraniteMoeExperts`` with random float32 weights, called as a model calls it: rows, ids and weights of
the chosen experts in, rows out. Every call has rows and experts of its own, so that few tokens do not find their
experts in the caches. ``eager`` is transformers' loop over experts, ``grouped_mm`` what it takes by default,
``compiled`` the latter after ``torch.compile``. All run in turn; times are milliseconds, minimum and median. Below are
ratios of these: how many times as fast as eager moec is, and as the better of the other two. On a machine that does
other things beside, only minima mean anything, and those little.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from layers import LAYERS, Layer
from results import print_rows
from timing import interleaved, summary, timed
from transformers.models.granitemoe.modeling_granitemoe import GraniteMoeExperts

import moec

_CASES = 16
_OWN = ("eager", "grouped_mm")


def make_module(layer: Layer) -> Any:
    config = transformers.GraniteMoeConfig(
        hidden_size=layer.width, intermediate_size=layer.hidden, num_local_experts=layer.experts
    )
    module = GraniteMoeExperts(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, parameter.shape[-1] ** -0.5)
    return module


def make_inputs(layer: Layer, tokens: int) -> tuple[Any, Any, Any]:
    """Make rows [T,d], ids [T,k] and weights [T,k]."""
    scores, ids = torch.randn(tokens, layer.experts).topk(layer.chosen)
    return torch.randn(tokens, layer.width), ids, scores.softmax(-1)


def contestants(module: Any, formats: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """Copy the module for each implementation, with shared parameters."""
    copies = {}
    for name in (*_OWN, moec.torch.register(), *map(moec.torch.register, formats)):
        copies[name] = copy.copy(module)
        copies[name].config = copy.copy(module.config)
        copies[name].config._experts_implementation = name
    copies["compiled"] = torch.compile(copies["grouped_mm"], dynamic=True)
    return copies


def ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compute the speed-up of ``moec`` over the others, for every number of tokens."""
    lines = []
    for tokens in dict.fromkeys(row["tokens"] for row in rows):
        of = {row["experts"]: row for row in rows if row["tokens"] == tokens}
        line: dict[str, Any] = {"tokens": tokens}
        for kind in ("min_ms", "median_ms"):
            best = min(of["grouped_mm"][kind], of["compiled"][kind])
            line |= {f"eager, {kind}": of["eager"][kind] / of["moec"][kind], f"best, {kind}": best / of["moec"][kind]}
        lines.append(line)
    return lines


def measure(layer: Layer, tokens: int, built: dict[str, Callable[..., Any]], seconds: float) -> list[dict[str, Any]]:
    """Measure a row for each contestant."""
    cases = [make_inputs(layer, tokens) for _ in range(_CASES)]
    expected = built["eager"](*cases[0])
    errors = {name: float((run(*cases[0]) - expected).norm() / expected.norm()) for name, run in built.items()}
    turns = {name: itertools.cycle(cases) for name in built}
    calls = {name: timed(lambda name=name: built[name](*next(turns[name]))) for name in built}
    times = interleaved(calls, seconds)
    return [{"tokens": tokens, "experts": name, **summary(times[name]), "error": errors[name]} for name in built]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", choices=LAYERS, default="granite")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--formats", nargs="*", default=["int8", "int4/32"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=3.0, help="least time per contestant and number of tokens")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    layer = LAYERS[args.layer]
    with torch.no_grad():
        built = contestants(make_module(layer), args.formats)
        rows = [row for tokens in args.tokens for row in measure(layer, tokens, built, args.seconds)]
    print(f"{layer}, {args.threads} threads\n")
    print_rows(rows)
    print("\ntimes as fast as\n")
    print_rows(ratios(rows))


if __name__ == "__main__":
    main()
