"""Placement of experts by what they do: the one entry to all methods.

``linear``: consecutive experts on consecutive ranks, without replicas. ``eplb``: :mod:`moec.placing.eplb`.
``joint``: :mod:`moec.placing.joint`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np

from moec.common.errors import MoecError
from moec.placing import eplb, joint
from moec.placing.order import aligned
from moec.placing.placement import ExpertPlacement, LayerPlacement, linear
from moec.profiles.measures import ExpertsMeasures

Array = np.ndarray[Any, Any]
Method = Literal["eplb", "joint", "linear"]
METHODS: tuple[Method, ...] = get_args(Method)
DEFAULT_METHOD: Method = "joint"


def place(
    loads: Sequence[Array] | Array,
    ranks: int,
    nodes: int = 1,
    replicas: int = 0,
    pairs: Sequence[Array] | None = None,
    following: Sequence[Array | None] | None = None,
    method: Method = DEFAULT_METHOD,
    *,
    groups: int = 1,
    names: Sequence[str] | None = None,
    slack: float = 0.0,
) -> ExpertPlacement:
    """Place the experts of layers with ``loads`` on ``ranks`` ranks of ``nodes`` machines.

    ``loads``: for each layer [E] or, in several windows of time, [W,E]: rows that came to each expert. ``replicas``:
    slots of a layer beyond one per expert, over all ranks. ``pairs``: for each layer [E,E], the tokens that select both
    experts. ``following``: for each layer [E,E'], the tokens of an expert that select expert e' of the next layer, None
    for the last. ``groups``: consecutive experts that a router selects together; nodes that divide their number get
    whole groups. ``names``: of the layers, for the placement. ``slack``: imbalance
    that the joint method may add for fewer pairs on different ranks.

    Raises MoecError for numbers that do not fit.
    """
    windows = [np.atleast_2d(np.asarray(layer, np.float64)) for layer in loads]
    names = [f"layers.{number}" for number in range(len(windows))] if names is None else names
    if method not in METHODS:
        raise MoecError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    for name, layer in zip(names, windows, strict=True):
        _check(name, layer, ranks, replicas)
    if method == "linear":
        if replicas:
            raise MoecError(f"replicas is {replicas}; the method linear places none; choose another method")
        layers = [linear(name, layer.shape[1], ranks) for name, layer in zip(names, windows, strict=True)]
        return ExpertPlacement(ranks, tuple(layers), nodes)
    ExpertPlacement(ranks, (), nodes)  # the numbers are checked before they are used
    if method == "eplb":
        slots = [eplb.balanced(layer.sum(axis=0), replicas, ranks, nodes, groups) for layer in windows]
    else:
        together = [None] * len(windows) if pairs is None else pairs
        job = joint.Task(ranks, nodes, replicas, groups, slack)
        slots = [job.slots(rows, counts) for rows, counts in zip(windows, together, strict=True)]
        slots = _in_order(slots, following or (), nodes)
    placed = [
        LayerPlacement(name, rows.shape[1], tuple(tuple(sorted(rank)) for rank in layer))
        for name, rows, layer in zip(names, windows, slots, strict=True)
    ]
    return ExpertPlacement(ranks, tuple(placed), nodes)


def place_in_order(layers: Iterable[tuple[str, int]], ranks: int, nodes: int = 1, replicas: int = 0) -> ExpertPlacement:
    """Place consecutive experts on consecutive ranks. ``layers``: name and number of experts of each. Raises MoecError
    for replicas, which need loads."""
    if replicas:
        raise MoecError(f"replicas is {replicas}: a profile says which experts need them; make one with moec profile")
    return ExpertPlacement(ranks, tuple(linear(name, experts, ranks) for name, experts in layers), nodes)


def place_measured(
    measures: Sequence[ExpertsMeasures],
    ranks: int,
    nodes: int = 1,
    replicas: int = 0,
    method: Method = DEFAULT_METHOD,
    *,
    groups: int = 1,
    names: Sequence[str] | None = None,
    slack: float = 0.0,
) -> ExpertPlacement:
    """Place measured layers, in their order, as :func:`place`. ``names``: by default those in the profile. Raises
    MoecError as :func:`place`, and for a profile without the arrays that the method needs."""
    pairs = [layer.array("pairs") for layer in measures]
    following = [_following(*pair) for pair in zip(measures, [*measures[1:], None], strict=True)]
    return place(
        [layer.count for layer in measures],
        ranks,
        nodes,
        replicas,
        pairs,
        following,
        method,
        groups=groups,
        names=[layer.name for layer in measures] if names is None else names,
        slack=slack,
    )


def _following(layer: ExpertsMeasures, after: ExpertsMeasures | None) -> Array | None:
    """Read the tokens [E,E'] that go from experts of a layer to those of the next one. None where they were not
    measured."""
    if after is None or layer.next_key != after.key:
        return None
    following = layer.read("following")
    return following if following is not None and following.shape[1] == after.experts else None


def _check(name: str, windows: Array, ranks: int, replicas: int) -> None:
    """Raise MoecError for loads [W,E] that are none, or for more replicas than ranks have room for."""
    if windows.ndim != 2 or not windows.size or not np.isfinite(windows).all() or (windows < 0).any():
        raise MoecError(f"loads of {name!r} are {list(windows.shape)}; expected numbers from 0 up, [experts]")
    most = windows.shape[1] * (ranks - 1)
    if not 0 <= replicas <= most:
        raise MoecError(
            f"replicas is {replicas}; expected 0 to {most}: {ranks} ranks can hold each of the {windows.shape[1]} "
            f"experts of {name!r} once"
        )


def _in_order(slots: list[eplb.Slots], following: Sequence[Array | None], nodes: int) -> list[eplb.Slots]:
    """Rename the ranks of each layer after those of the layer before, where their tokens were measured."""
    ordered = slots[:1]
    for layer, counts in zip(slots[1:], following, strict=False):
        ordered.append(layer if counts is None else aligned(layer, ordered[-1], counts, nodes))
    return [*ordered, *slots[len(ordered) :]]
