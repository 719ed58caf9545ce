"""Timing of a language model's sessions as llama-bench does it: prompts (``pp``) and single tokens (``tg``), after a
number of other tokens."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moec.common.errors import MoecError
from moec.common.progress import Progress
from moec.runtime.generation import prefilled
from moec.runtime.workers import team_of

if TYPE_CHECKING:
    from moec.runtime.model import CompiledModel
    from moec.runtime.session import Session

PREFILL, DECODE = 512, 64
"""Numbers of tokens that are timed by default."""


def bench_session(
    model: CompiledModel,
    *,
    prefill: int | None = None,
    decode: int | None = None,
    depths: Sequence[int] = (0,),
    repetitions: int = 5,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time prompts of ``prefill`` tokens, and ``decode`` tokens one by one, in sessions that hold ``depth`` tokens.

    Returns plain data: for each depth the seconds and tokens per second. Every repetition continues from the same
    session; one more before them is not counted. Ids are random, the same in every call; nothing is sampled.
    ``streamed``: bytes read and time waited, where experts are streamed.

    ``shares`` divide all threads' time: ``loops`` is work in kernels' parallel loops, ``barriers`` waiting for others
    at their ends, ``between`` work of one thread while others had nothing to do. None where loops have no team: one
    thread, other systems.

    Raises MoecError for numbers out of range; InputError for a model that is no language model or takes fewer tokens.
    """
    lengths = {"pp": prefill, "tg": decode}
    wrong = [number for number in (prefill, decode, repetitions) if number is not None and number < 1]
    if wrong or min(depths, default=-1) < 0 or lengths == {"pp": None, "tg": None}:
        raise MoecError(
            "expected prefill, decode and repetitions from 1 up, at least one of the first, depths from 0 up"
        )
    tests = [(kind, length) for kind, length in lengths.items() if length is not None]
    rows, announce = [], progress or _silent
    for depth in depths:
        session = model.session(max_tokens=depth + max(length for _, length in tests))
        ids: np.ndarray[Any, Any] = np.random.default_rng(0).integers(0, session.vocabulary, session.max_tokens)
        if depth:
            announce(f"filling a session with {depth} tokens")
            prefilled(session, ids[:depth].tolist())
        for kind, length in tests:
            announce(f"timing {kind}{length} behind {depth} tokens")
            part = ids[depth : depth + length].tolist()
            seconds, shares = _timed(session, _RUNS[kind], part, repetitions, model.threads)
            rows.append({**_row(kind, depth, length, seconds), "shares": shares})
    counts = None if model.streamed is None else dataclasses.asdict(model.streamed)
    weights = dataclasses.asdict(model.placement)
    return {"threads": model.threads, "weights": weights, "streamed": counts, "tests": rows}


def _silent(_step: str) -> None:
    pass


def _prefill(session: Session, ids: list[int]) -> None:
    prefilled(session, ids)


def _decode(session: Session, ids: list[int]) -> None:
    for place in range(len(ids)):
        session.run(ids[place : place + 1])


_RUNS = {"pp": _prefill, "tg": _decode}


def _timed(
    session: Session, run: Callable[[Session, list[int]], None], ids: list[int], repetitions: int, threads: int
) -> tuple[list[float], dict[str, float] | None]:
    """Time every repetition, in seconds, and divide their time into shares."""

    def once() -> float:
        fork = session.fork()
        start = time.perf_counter()
        run(fork, ids)
        return time.perf_counter() - start

    once()
    team = team_of(threads)
    if team is None:
        return [once() for _ in range(repetitions)], None
    with team.clocked() as times:
        seconds = [once() for _ in range(repetitions)]
    if not times.in_loops:  # all of it ran on one thread, or the artifact's team has no clock
        return seconds, None
    loops, barriers = times.at_parts / sum(seconds), (times.in_loops - times.at_parts) / sum(seconds)
    return seconds, {"loops": loops, "barriers": barriers, "between": 1 - loops - barriers}


def _row(kind: str, depth: int, length: int, seconds: Sequence[float]) -> dict[str, Any]:
    rates = [length / duration for duration in seconds]
    return {
        "test": f"{kind}{length}",
        "depth": depth,
        "tokens": length,
        "seconds": list(seconds),
        "tokens_per_second": {
            "mean": statistics.fmean(rates),
            "deviation": statistics.stdev(rates) if len(rates) > 1 else 0.0,
            "median": statistics.median(rates),
            "min": min(rates),
        },
    }
