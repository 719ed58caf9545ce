"""Changes of a distributed run that would make it faster, each predicted like the run itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from moec.placing.judge import pairs_of
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


@dataclasses.dataclass(frozen=True)
class OtherPlacement:
    """A placement that a run may change to: its ``kind``, as of a change, and the ``words`` for it."""

    kind: str
    words: str
    placement: ExpertPlacement


def changes(workload: Workload, before: Prediction, others: Sequence[OtherPlacement]) -> list[RunChange]:
    """Predict all changes, the best first, including those that save nothing. ``others``: as :func:`other_placements`
    finds them once for all numbers of tokens."""
    results = []
    for kind, words, setup in _setups(before.setup, others):
        after = predict(workload, setup).seconds_per_token
        saved = 1 - after / before.seconds_per_token if before.seconds_per_token else 0.0
        times = f"{after * 1e6:.3g} µs per token in place of {before.seconds_per_token * 1e6:.3g}"
        results.append(
            RunChange(kind, after, saved, f"{words}: {abs(saved):.0%} {'less' if saved >= 0 else 'more'}, {times}")
        )
    return sorted(results, key=lambda change: -change.saved)


def other_placements(workload: Workload, before: ExpertPlacement) -> list[OtherPlacement]:
    """Place the experts by their popularity, without and with replicas. Leaves out what is as ``before``."""
    others = [
        OtherPlacement("placement", "experts placed by their popularity", _placed(workload, before, 0)),
        OtherPlacement(
            "replicas",
            f"placed by popularity with {before.ranks} replicas",
            _placed(workload, before, before.ranks),
        ),
    ]
    return [other for other in others if other.placement != before]


def _setups(setup: Setup, others: Sequence[OtherPlacement]) -> Iterator[tuple[str, str, Setup]]:
    """Iterate over the changed setups, each with its kind and the words for it."""
    (transport,) = set(TRANSPORTS) - {setup.schedule.transport}
    schedule = dataclasses.replace(setup.schedule, transport=transport)
    ranks = setup.placement.ranks
    if ranks > 1:
        yield "transport", f"transport {transport}", dataclasses.replace(setup, schedule=schedule)
        yield "link", "links of twice the bandwidth", dataclasses.replace(setup, links=setup.links.faster(2))
        for other in others:
            yield other.kind, other.words, dataclasses.replace(setup, placement=other.placement)
        if setup.tokens > 1 and not setup.halves:
            yield "halves", "two halves of the tokens in turn", dataclasses.replace(setup, halves=True)
    yield "batch", f"{2 * setup.tokens} tokens on each rank", dataclasses.replace(setup, tokens=2 * setup.tokens)


def _placed(workload: Workload, before: ExpertPlacement, replicas: int) -> ExpertPlacement:
    """Place the experts by their popularity and the tokens that were recorded, with at most so many replicas as there
    is room for."""
    layers = []
    for layer, own in zip(workload.layers, before.layers, strict=True):
        placed = place(
            [layer.popularity],
            before.ranks,
            before.nodes,
            min(replicas, own.experts * (before.ranks - 1)),
            None if layer.recorded is None else [pairs_of(layer.recorded, own.experts)],
            groups=layer.groups,
            names=[own.name],
        )
        layers += placed.layers
    return dataclasses.replace(before, layers=tuple(layers))
