"""When what heads attend to is in memory, query by query.

Words leave a pipeline ``stages`` iterations behind what it read. Where it waits for words, those inside do, too: they
come out when others push them, or when its loop ends. A query takes few iterations, so whole heads of few tokens are
inside, and the second product, which takes longer for a query than all in front of it, has them late.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moec.targets.hls.attention.design import QUERY, AttentionDesign
from moec.targets.hls.hardware.cycles import Loader, MemoryPace
from moec.targets.hls.moe.design import BEAT_BYTES, RESULT_BITS

Array = np.ndarray[Any, Any]
Span = tuple[float, float]

_LOOPS_OF_ROWS = 4
"""Pipelines behind the second product: results, the residual, beats, memory."""


def written(
    design: AttentionDesign, groups: Sequence[int], spans: Sequence[Span], pace: MemoryPace, stages: int
) -> float:
    """When the last token is written. ``groups``: of keys that the query of each token meets; ``spans``: when the
    queries of each head start to leave the first product, and how long they take. Results go to memory through the port
    that the tokens come from, which they are added to."""
    shape, tokens, heads = design.shape, len(groups), len(spans)
    per_token, meets, chunks = design.row_cycles(QUERY), np.tile(groups, heads), design.chunks
    begins, lasts = np.array(spans).T
    places = (np.arange(tokens) + 1) * np.maximum(lasts / tokens, per_token)[:, None]
    found = (begins[:, None] + np.minimum(places, lasts[:, None]) - chunks + stages).ravel()
    rows, of_keys = np.full(len(meets), chunks), shape.sharing * tokens
    for loop in (
        *[tokens] * (1 + 2 * shape.turned),
        *[of_keys] * (shape.cached > 0),
    ):  # split, measured, turned; joined
        found = _through(found, rows, loop, stages) - chunks  # the next one begins with a row's first words
    scored = _through(found, meets * chunks, of_keys, stages)
    mixed = _through(_weighed(scored, meets, tokens, stages), meets * chunks, of_keys, stages)
    attended = _through(mixed, rows, len(meets), stages)
    return _multiplied(design, attended.reshape(heads, tokens), pace, stages) + (1 + _LOOPS_OF_ROWS) * stages


def _through(came: Array, steps: Array, of_loop: int, stages: int) -> Array:
    """When the last word of each query leaves a pipeline that takes it from ``came`` on, in so many ``steps``. Behind
    each loop of ``of_loop`` queries it is empty."""
    loop = np.arange(len(came)) // of_loop
    ends = np.cumsum(steps) + loop * stages  # were there nothing to wait for
    begins = ends - steps
    starts = begins + np.maximum.accumulate(came - begins)
    leaves = ends + stages
    last = np.minimum((loop + 1) * of_loop, len(came)) - 1
    pushed_by = np.minimum(np.searchsorted(ends, leaves), last)
    return starts[pushed_by] + steps[pushed_by] + leaves - ends[pushed_by]


def _weighed(scored: Array, meets: Array, tokens: int, stages: int) -> Array:
    """A query is weighed while the next one of its head is read, the last one behind it."""
    came, steps = (np.pad(one.reshape(-1, tokens), ((0, 0), (0, 1)), mode="edge") for one in (scored, meets))
    found = _through(came.ravel(), steps.ravel(), tokens + 1, stages)
    return found.reshape(came.shape)[:, 1:].ravel()


def _multiplied(design: AttentionDesign, attended: Array, pace: MemoryPace, stages: int) -> float:
    """When the second product is done with what each head attends to, [heads, tokens]."""
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
    moved = rows + max(0, rows - design.fifos.beats - stages)  # some of what results are added to has been read before
    return max(end, start + moved * pace.cycles_per_beat)
