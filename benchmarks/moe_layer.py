"""One MoE layer, router logits and tokens in, tokens out: moec against its peers, in every format of the weights.

    python benchmarks/moe_layer.py [--layers granite olmoe] [--tokens 1 16 1024] [--formats fp32 int8]
                                   [--peers moec vllm ggml] [--seconds 0.5] [--output benchmarks/results/moe_layer]

Peers that are not installed are left out with a message (benchmarks/README.md tells how to install each); one that
fails or crashes loses its own figures only. Every cell is written to OUTPUT.json when it is done, and what is there
already is not measured again: an interrupted run goes on where it stopped. At the end come OUTPUT.md and OUTPUT.svg.

Contestants run in turn, each in a process of its own. The caches are emptied before every run, and every run meets
other experts, so that weights come from memory, as they do in a model of many layers.
"""

from __future__ import annotations

import argparse
import itertools
import math
import pathlib
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import report
from formats import FORMATS, Format
from layers import LAYERS, Case, Layer, Weights, active_experts, make_cases, reference
from peers import NAMES, AbsentError, peer_named
from results import Results
from timing import interleaved, pause, summary
from worker import FailedError, Worker

from moec.common.cores import available_cores
from moec.targets.cpu.roofline import MemoryReader, measure_roofline

TOKENS = (1, 4, 16, 64, 256, 1024)
FEW_TOKENS = 16
MOST_CASES_OF_FEW, MOST_CASES_OF_MANY = 16, 3
LEAST_RUNS_OF_FEW, LEAST_RUNS_OF_MANY = 7, 3
CHECKED_TOKENS = 16
"""Number of tokens whose results are compared with float32."""
MOST_ERROR = 0.5
"""Largest error, as a share of the norm of the float32 results. Four bits are at 0.15; beyond this the computation
differs."""

Pool = dict[str, Worker]


class Contest:
    """All contestants on one layer in one format. ``pool``: their processes by name, kept from contest to contest."""

    def __init__(self, layer: Layer, form: Format, weights: Weights, args: argparse.Namespace, pool: Pool) -> None:
        self._layer, self._form, self._weights, self._args, self._pool = layer, form, weights, args, pool
        self._bits: dict[str, float] = {}
        self._absent: dict[str, str] = {}
        for peer in args.peers:
            self._enter(peer)

    def measure(self, tokens: int, reader: MemoryReader) -> dict[str, Any]:
        """Measure one cell: times and errors by contestant, and the bandwidth of memory meanwhile."""
        few = tokens <= FEW_TOKENS
        cases = make_cases(self._layer, tokens, MOST_CASES_OF_FEW if few else MOST_CASES_OF_MANY)
        for name in list(self._bits):
            self._try(name, lambda worker: worker.prepare(cases))
        errors = self._errors(cases[0])
        bandwidths: list[float] = []

        def before() -> None:
            bandwidths.append(reader.read())
            pause()

        runs = {name: self._runner(name, cases) for name in self._bits}
        least = LEAST_RUNS_OF_FEW if few else LEAST_RUNS_OF_MANY
        times = interleaved(runs, self._args.seconds, least, before)
        figures = {
            name: {**summary(times[name]), "runs": len(times[name]), "error": errors[name], "bits": bits}
            for name, bits in self._bits.items()
        }
        read = {
            "read_gb_per_s": max(bandwidths, default=0.0) / 1e9,
            "active_experts": active_experts(self._layer, cases[0]),
        }
        return {**read, "contestants": figures, "absent": dict(self._absent)}

    def close(self) -> None:
        """Free all built layers."""
        for name in list(self._bits):
            self._try(name, lambda worker: worker.drop())

    def _enter(self, peer: str) -> None:
        try:
            variants = peer_named(peer).variants(self._layer, self._form)
        except AbsentError as reason:
            self._absent[peer] = str(reason)
            return
        for variant in variants:
            name = f"{peer} {variant}".strip()
            self._pool.setdefault(name, Worker(peer, variant, self._args.threads))
            start = time.perf_counter()
            bits = self._try(name, lambda worker: worker.build(self._layer.name, self._form.name, self._weights.folder))
            if bits is not None:
                self._bits[name] = bits
                print(f"  {name}: built in {time.perf_counter() - start:.1f} s, {bits:.2f} bits per weight", flush=True)

    def _try(self, name: str, do: Callable[[Worker], Any]) -> Any:
        """Call ``do`` with a contestant's worker and return the result. A contestant that fails is absent from then
        on."""
        try:
            return do(self._pool[name])
        except (AbsentError, FailedError) as reason:
            print(f"  {name}: {reason}", flush=True)
            self._absent[name] = str(reason)
            self._bits.pop(name, None)
            return None

    def _runner(self, name: str, cases: list[Case]) -> Callable[[], float]:
        """Make a function that runs one case after the other and returns seconds, infinite for a contestant that
        failed.

        With one token, waking threads would show in the time, so a call on a case that shares no expert wakes them
        first.
        """
        turns = itertools.count(1)
        awake = len(cases[0].x) == 1

        def run() -> float:
            if name not in self._bits:
                return math.inf
            index = next(turns) % len(cases)
            before = (index - 1) % len(cases) if awake else None
            seconds = self._try(name, lambda worker: worker.run(index, before))
            return math.inf if seconds is None else seconds

        return run

    def _errors(self, case: Case) -> dict[str, float]:
        """Compute errors relative to the float32 results. A contestant with wrong results is absent from then on."""
        expected = reference(self._weights, case, CHECKED_TOKENS)

        def error_of(worker: Worker) -> float:
            error = float(np.linalg.norm(worker.result(0, CHECKED_TOKENS) - expected) / np.linalg.norm(expected))
            if not error <= MOST_ERROR:
                raise FailedError(f"its results are wrong: an error of {error:.2g}, expected at most {MOST_ERROR}")
            return error

        errors = {name: self._try(name, error_of) for name in list(self._bits)}
        return {name: error for name, error in errors.items() if error is not None}


def measure_layer(layer: Layer, args: argparse.Namespace, results: Results, pool: Pool) -> None:
    missing = {form: results.missing(layer.name, form, args.tokens) for form in args.formats}
    if not any(missing.values()):
        return
    print(f"{layer}", flush=True)
    roofline = measure_roofline(args.threads).as_data()
    reader = MemoryReader(args.threads)
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        weights = Weights(layer, pathlib.Path(folder))
        weights.make()
        for form, sizes in missing.items():
            if not sizes:
                continue
            print(f" {form}", flush=True)
            contest = Contest(layer, FORMATS[form], weights, args, pool)
            for tokens in sizes:
                start = time.perf_counter()
                cell = contest.measure(tokens, reader)
                results.add(layer.name, form, tokens, {**cell, "roofline": roofline})
                _print_cell(tokens, cell, time.perf_counter() - start)
            contest.close()


def _print_cell(tokens: int, cell: dict[str, Any], seconds: float) -> None:
    ranking = sorted((figures["min_ms"], name) for name, figures in cell["contestants"].items())
    listed = ", ".join(f"{name} {milliseconds:.3g}" for milliseconds, name in ranking)
    print(f"  {tokens} tokens: {listed} ms (measured in {seconds:.0f} s)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--peers", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--threads", type=int, default=len(available_cores()))
    parser.add_argument("--seconds", type=float, default=0.5, help="least time per contestant and cell")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("moe_layer"), help="path without suffix")
    parser.add_argument("--scratch", help="folder for weights, up to 12 GB; default: the system's")
    args = parser.parse_args()
    results = Results(args.output.with_suffix(".json"))
    pool: Pool = {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as an exception, so that the processes are ended
    start = time.perf_counter()
    try:
        for name in args.layers:
            measure_layer(LAYERS[name], args, results, pool)
    finally:
        for worker in pool.values():
            worker.close()
        print(f"took {(time.perf_counter() - start) / 60:.1f} minutes")
        report.write(results, args.output)


if __name__ == "__main__":
    main()
