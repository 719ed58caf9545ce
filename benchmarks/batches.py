"""Time a step of a batch of 1, 2, 4 and 8 sequences, a token each, and sessions of one sequence in their place.

    python benchmarks/batches.py model.moec --depth 64 --rounds 60    # compiled with --batches

All sizes take turns in each round, and ratios are medians over rounds, since other processes share the cores. Tokens
are random, so each token of a step takes experts of its own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

import moec

SIZES = (1, 2, 4, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--depth", type=int, default=64, help="tokens of each sequence before the first step")
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    model = moec.load(options.model)
    works = {f"batch of {size}": of_batch(model, size, options) for size in SIZES}
    works["8 sessions"] = of_sessions(model, max(SIZES), options)
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(options.rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    alone = np.array(times["batch of 1"])
    for name, seconds in times.items():
        ratio = np.median(np.array(seconds) / alone)
        print(f"{name}: least {1e3 * min(seconds):.2f} ms, median {1e3 * np.median(seconds):.2f} ms, {ratio:.2f} times")


def of_batch(model: moec.CompiledModel, size: int, options: argparse.Namespace) -> Callable[[], object]:
    """Make the work of one step of a batch."""
    random, vocabulary = np.random.default_rng(size), model.session().vocabulary
    batch = model.batch(size, size * (options.depth + options.rounds + 256))
    for _ in range(size):
        batch.add(random.integers(0, vocabulary, options.depth))
    while any(map(batch.waiting, batch.sequences)):
        batch.step()

    def work() -> None:
        for number in batch.sequences:
            batch.extend(number, random.integers(0, vocabulary, 1))
        batch.step()

    return work


def of_sessions(model: moec.CompiledModel, size: int, options: argparse.Namespace) -> Callable[[], object]:
    """Make the work of a token of each of several sessions."""
    random, sessions = np.random.default_rng(0), [model.session() for _ in range(size)]
    for session in sessions:
        session.run(random.integers(0, session.vocabulary, options.depth))
    return lambda: [session.run(random.integers(0, session.vocabulary, 1)) for session in sessions]


if __name__ == "__main__":
    main()
