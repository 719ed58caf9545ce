"""Changes of a distributed run that would make it faster, each predicted like the run itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from moec.placing.place import place
from moec.placing.placement import ExpertPlacement
from moec.placing.volume import TRANSPORTS
from moec.predicting.workload import Prediction, Setup, Workload, predict

LEAST = 0.02
"""Least share of the time per token that a change saves, for advice."""


@dataclasses.dataclass(frozen=True)
class RunChange:
    """A change with the seconds per token after it, the ``saved`` share of those before, and the ``text`` for people.

    ``kind``: ``transport``, ``placement``, ``replicas``, ``link``, ``batch`` or ``halves``."""

    kind: str
    seconds_per_token: float
    saved: float
    text: str


def changes(workload: Workload, before: Prediction) -> list[RunChange]:
    """Predict all changes, the best first, including those that save nothing."""
    results = []
    for kind, words, setup in _setups(workload, before.setup):
        after = predict(workload, setup).seconds_per_token
        saved = 1 - after / before.seconds_per_token if before.seconds_per_token else 0.0
        times = f"{after * 1e6:.3g} µs per token in place of {before.seconds_per_token * 1e6:.3g}"
        results.append(
            RunChange(kind, after, saved, f"{words}: {abs(saved):.0%} {'less' if saved >= 0 else 'more'}, {times}")
        )
    return sorted(results, key=lambda change: -change.saved)


def _setups(workload: Workload, setup: Setup) -> Iterator[tuple[str, str, Setup]]:
    """Iterate over the changed setups, each with its kind and the words for it."""
    (other,) = set(TRANSPORTS) - {setup.schedule.transport}
    schedule = dataclasses.replace(setup.schedule, transport=other)
    ranks = setup.placement.ranks
    if ranks > 1:
        yield "transport", f"transport {other}", dataclasses.replace(setup, schedule=schedule)
        yield "link", "links of twice the bandwidth", dataclasses.replace(setup, links=setup.links.faster(2))
        for kind, words, replicas in (
            ("placement", "experts placed by their popularity", 0),
            ("replicas", f"placed by popularity with {ranks} replicas", ranks),
        ):
            placement = _placed(workload, setup, replicas)
            if placement != setup.placement:
                yield kind, words, dataclasses.replace(setup, placement=placement)
        if setup.tokens > 1 and not setup.halves:
            yield "halves", "two halves of the tokens in turn", dataclasses.replace(setup, halves=True)
    yield "batch", f"{2 * setup.tokens} tokens on each rank", dataclasses.replace(setup, tokens=2 * setup.tokens)


def _placed(workload: Workload, setup: Setup, replicas: int) -> ExpertPlacement:
    """Place the experts by their popularity, with at most so many replicas as there is room for."""
    before = setup.placement
    layers = []
    for layer, own in zip(workload.layers, before.layers, strict=True):
        fitting = min(replicas, own.experts * (before.ranks - 1))
        placement = place(
            [layer.popularity],
            before.ranks,
            before.nodes,
            fitting,
            method="eplb",
            groups=layer.groups,
            names=[own.name],
        )
        layers.append(placement.layers[0])
    return dataclasses.replace(before, layers=tuple(layers))
