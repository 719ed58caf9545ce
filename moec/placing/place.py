"""Placement of experts by what they do: the one entry to all methods.

``linear``: consecutive experts on consecutive ranks, without replicas. ``eplb``: :mod:`moec.placing.eplb`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from moec.common.errors import MoecError
from moec.placing import eplb
from moec.placing.placement import ExpertPlacement, LayerPlacement, linear
from moec.profiles import Profile
from moec.profiles.measures import ExpertsMeasures

Array = np.ndarray[Any, Any]
Method = Literal["eplb", "linear"]
METHODS: tuple[Method, ...] = get_args(Method)


def place(
    loads: Sequence[Array] | Array,
    ranks: int,
    nodes: int = 1,
    replicas: int = 0,
    pairs: Sequence[Array] | None = None,
    following: Sequence[Array | None] | None = None,
    method: Method = "eplb",
    *,
    groups: int = 1,
    names: Sequence[str] | None = None,
) -> ExpertPlacement:
    """Place the experts of layers with ``loads`` on ``ranks`` ranks of ``nodes`` machines.

    ``loads``: for each layer [E] or, in several windows of time, [W,E]: rows that came to each expert. ``replicas``:
    slots of a layer beyond one per expert, over all ranks. ``pairs``: for each layer [E,E], the tokens that select both
    experts. ``following``: for each layer [E,E'], the tokens of an expert that select expert e' of the next layer, None
    for the last. ``groups``: consecutive experts that a router selects together; nodes that divide their number get
    whole groups. ``names``: of the layers, for the placement.

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
    layers = [
        _balanced(name, layer, ranks, nodes, replicas, groups) for name, layer in zip(names, windows, strict=True)
    ]
    return ExpertPlacement(ranks, tuple(layers), nodes)


def place_measured(
    measures: Sequence[ExpertsMeasures],
    ranks: int,
    nodes: int = 1,
    replicas: int = 0,
    method: Method = "eplb",
    *,
    groups: int = 1,
    names: Sequence[str] | None = None,
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
    )


def place_profile(
    profile: str | os.PathLike[str],
    ranks: int,
    nodes: int = 1,
    replicas: int = 0,
    method: Method = "eplb",
    *,
    groups: int = 1,
) -> ExpertPlacement:
    """Place all layers of experts of a ``.moeprof`` file, as :func:`place`. Raises MoecError as :func:`place_measured`,
    and for a file that is no profile."""
    with contextlib.closing(Profile.read(profile)) as measured:
        layers = list(measured.all_experts())
        if not layers:
            raise MoecError(f"{os.fspath(profile)}: has no layers of experts; there is nothing to place")
        return place_measured(layers, ranks, nodes, replicas, method, groups=groups)


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


def _balanced(name: str, windows: Array, ranks: int, nodes: int, replicas: int, groups: int) -> LayerPlacement:
    """Place a layer by EPLB, for the sum of its windows."""
    loads = windows.sum(axis=0)
    slots = eplb.rebalance(loads[None], len(loads) + replicas, groups, nodes, ranks)[0]
    return placed(name, len(loads), eplb.distinct(slots, loads))


def placed(name: str, experts: int, slots: eplb.Slots) -> LayerPlacement:
    """Make the placement of a layer from its slots, with the experts of each rank in ascending order."""
    return LayerPlacement(name, experts, tuple(tuple(sorted(rank)) for rank in slots))
