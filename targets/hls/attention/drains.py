"""The time at which the results of an attention block are in memory, computed query by query.

A word leaves a pipeline ``stages`` iterations after it was read. A pipeline that waits for input also holds the words
inside; they come out when later words push them, or when the loop ends. A query takes few iterations, so all queries of
a head with few tokens may be inside pipelines. The second product, which is slower than the processes before it, then
gets them late.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moec.targets.hls.design.attention import QUERY, AttentionDesign
from moec.targets.hls.design.numbers import BEAT_BYTES, RESULT_BITS
from moec.targets.hls.hardware.cycles import Loader, MemoryPace

Array = np.ndarray[Any, Any]
Span = tuple[float, float]

_LOOPS_OF_ROWS = 4
"""Pipelines after the second product: results, the residual, beats, memory."""


def written(
    design: AttentionDesign, groups: Sequence[int], spans: Sequence[Span], pace: MemoryPace, stages: int
) -> float:
    """The time at which the last token is written. ``groups``: the number of groups of keys that each token's query is
    scored with; ``spans``: for each head the time at which its queries start to leave the first product, and the
    cycles they take. Results are written through the port that also reads the tokens they are added to."""
    shape, tokens, heads = design.shape, len(groups), len(spans)
    per_token, meets, chunks = design.row_cycles(QUERY), np.tile(groups, heads), design.chunks
    begins, lasts = np.array(spans).T
    places = (np.arange(tokens) + 1) * np.maximum(lasts / tokens, per_token)[:, None]
    times = (begins[:, None] + np.minimum(places, lasts[:, None]) - chunks + stages).ravel()
    rows, of_keys = np.full(len(meets), chunks), shape.sharing * tokens
    for loop in (
        *[tokens] * (1 + 2 * shape.turned),
        *[of_keys] * (shape.cached > 0),
    ):  # the pipelines that split, measure and rotate; the one that joins cached keys
        times = _through(times, rows, loop, stages) - chunks  # the next pipeline begins with a row's first words
    scored = _through(times, meets * chunks, of_keys, stages)
    mixed = _through(_weighed(scored, meets, tokens, stages), meets * chunks, of_keys, stages)
    attended = _through(mixed, rows, len(meets), stages)
    return _multiplied(design, attended.reshape(heads, tokens), pace, stages) + (1 + _LOOPS_OF_ROWS) * stages


def _through(came: Array, steps: Array, of_loop: int, stages: int) -> Array:
    """The time at which the last word of each query leaves a pipeline that takes the query from ``came`` on, in
    ``steps`` iterations. The pipeline runs empty after each loop of ``of_loop`` queries."""
    loop = np.arange(len(came)) // of_loop
    ends = np.cumsum(steps) + loop * stages  # without any waiting
    begins = ends - steps
    starts = begins + np.maximum.accumulate(came - begins)
    leaves = ends + stages
    last = np.minimum((loop + 1) * of_loop, len(came)) - 1
    pushed_by = np.minimum(np.searchsorted(ends, leaves), last)
    return starts[pushed_by] + steps[pushed_by] + leaves - ends[pushed_by]


def _weighed(scored: Array, meets: Array, tokens: int, stages: int) -> Array:
    """The time at which the weights of each query are complete: a query is weighed while the next one of its head is
    read, and the last one after that."""
    came, steps = (np.pad(array.reshape(-1, tokens), ((0, 0), (0, 1)), mode="edge") for array in (scored, meets))
    times = _through(came.ravel(), steps.ravel(), tokens + 1, stages)
    return times.reshape(came.shape)[:, 1:].ravel()


def _multiplied(design: AttentionDesign, attended: Array, pace: MemoryPace, stages: int) -> float:
    """The time at which the second product is done. ``attended`` [heads, tokens]: the times at which the weighted
    values of each head arrive."""
    tokens, per_token = attended.shape[1], design.chunks * design.width_chunks
    beats, loader = design.width * design.head_width // BEAT_BYTES, Loader(design.fifos.weights, pace, stages)
    arrived = loader.arrival(beats, 0, 0)
    end = announced = start = 0.0
    for first, last in attended[:, [0, -1]].tolist():
        start = max(end + stages, arrived + stages, first)
        arrived = loader.arrival(beats, announced, start)
        announced = max(announced, start + per_token * (tokens - 1 - design.fifos.items))
        end = max(start + tokens * per_token, last + per_token)
    rows = tokens * design.width * RESULT_BITS / 8 / BEAT_BYTES
    moved = rows + max(0, rows - design.fifos.beats - stages)  # part of the residual has been read before
    return max(end, start + moved * pace.cycles_per_beat)
