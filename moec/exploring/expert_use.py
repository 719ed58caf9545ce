"""Use of experts, as a profile measured it, for the blocks of an artifact."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moec.exploring.subject import Subject
from moec.profiles.file import Profile
from moec.profiles.measures import ExpertsMeasures

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class ExpertUse:
    """The measures of a layer of experts that an explorer shows. ``weight``: the mean routing weight of each expert's
    tokens; ``errors``: by format and part, relative errors of each expert's output where that part alone is rounded;
    ``recorded``: the experts [n,k] of some tokens, None where the profile does not have them."""

    tokens: int
    count: Array
    weight: Array
    errors: Mapping[str, Mapping[str, Array]]
    pairs: list[list[int]]
    recorded: Array | None = None

    def of(self, fact: Mapping[str, Any], at_first: int, present: int) -> dict[str, Any]:
        """Look an expert up by its facts: ``tokens`` that came to it, their mean routing ``weight``, ``errors`` by
        weight, relative, of its output where that weight alone is rounded to its format (None where the profile did not
        measure the format), and the ``error`` of all.

        Errors are those of plain rounding, on rows that the profile kept; there are none for merged experts, whose
        weights it did not see. ``at_first``, ``present``: numbers of experts, which tell whether the profile is of the
        experts at first or of those that are left. Empty for an expert that the profile does not have.
        """
        place = {at_first: fact["expert"], present: fact["number"]}.get(len(self.count))
        if place is None:
            return {}
        own = {} if fact["with"] else fact["formats"]  # weights of merged experts are none that were measured
        errors = {name: self._error(name, form, place, own) for name, form in own.items()}
        measured = [error for error in errors.values() if error is not None]
        return {
            "tokens": int(self.count[place]),
            "weight": _rounded(float(self.weight[place])),
            "errors": errors,
            "error": _root_of_squares(measured) if measured and len(measured) == len(errors) else None,
        }

    def _error(self, name: str, form: str, place: int, formats: Mapping[str, str]) -> float | None:
        if form == "float32":
            return 0.0
        measured = self.errors.get(form)
        if measured is None:
            return None
        joined = ("up", "gate") if name == "up" and "gate" not in formats else (name,)
        own = [float(measured[part][place]) for part in joined if part in measured]
        return _root_of_squares(own) if own else None


@dataclasses.dataclass(frozen=True)
class ExpertUses:
    """The use of the experts of each block, None for one that the profile does not have. ``profile``: the names of its
    model and data, and their tokens; None where there is none, for a ``reason``."""

    layers: Sequence[ExpertUse | None]
    profile: dict[str, Any] | None
    reason: str | None = None


def uses_of(subject: Subject) -> ExpertUses:
    """Read a profile for the blocks of an artifact. A profile of another file than the artifact's gives nothing but the
    reason. Raises MoecError for a file that is no profile."""
    blocks = subject.description["moe_blocks"]
    if subject.profile is None:
        return ExpertUses([None] * len(blocks), None, "no profile was given")
    profile = Profile.read(subject.profile)
    try:
        head = profile.head
        own, source = subject.description["provenance"].get("source", {}).get("sha256"), head.model.get("sha256")
        if own and source and own != source:
            reason = f"the profile is of another model, {head.model.get('name', '?')}"
            return ExpertUses([None] * len(blocks), None, reason)
        layers = _by_block([block["name"] for block in blocks], list(profile.all_experts()))
        data = [{"name": piece["name"], "tokens": piece["tokens"]} for piece in head.data]
        named = {"file": subject.profile.name, "model": head.model.get("name"), "data": data}
        return ExpertUses([None if own is None else _use(own, head.formats) for own in layers], named)
    finally:
        profile.close()


def _by_block(names: Sequence[str], layers: Sequence[ExpertsMeasures]) -> list[ExpertsMeasures | None]:
    """Find the layer of each block: by the node that was measured, or, where a pass has renamed it, by its place among
    as many layers."""
    of_name = {layer.name: layer for layer in layers}
    if not of_name.keys() & set(names) and len(names) == len(layers):
        return list(layers)
    return [of_name.get(name) for name in names]


def _use(measures: ExpertsMeasures, formats: Sequence[str]) -> ExpertUse:
    energy, count = measures.array("energy"), measures.count
    squares_of = {form: squares for form in formats if (squares := measures.error(form)) is not None}
    errors = {
        form: dict(zip(measures.parts, np.sqrt(_shares(squares.T, energy)), strict=True))
        for form, squares in squares_of.items()
    }
    pairs = measures.array("pairs").astype(int).tolist()
    weight = _shares(measures.array("gate_sum"), count)
    return ExpertUse(measures.tokens, count, weight, errors, pairs, measures.recorded())


def _shares(part: Array, whole: Array) -> Array:
    """Divide, with 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)


def _root_of_squares(errors: Sequence[float]) -> float:
    """Add up independent errors."""
    return _rounded(sum(error * error for error in errors) ** 0.5)


def _rounded(value: float) -> float:
    """Keep the digits that a person reads, because a model has thousands of experts."""
    return float(f"{value:.4g}")
