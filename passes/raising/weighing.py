"""Known properties of weights that take the place of a router's logits."""

from __future__ import annotations

import dataclasses

import numpy as np

from moec.common.budgets import Budget
from moec.passes.raising.dataflow import Array


@dataclasses.dataclass(frozen=True)
class Weighing:
    """Properties of weights [T,E] that hold for all their numbers: whether none is negative, and how many of a token,
    at ``most``, are not 0. ``exceeded``: budgets that were too small to show a lower number."""

    never_negative: bool
    most: int
    exceeded: tuple[Budget, ...] = ()

    def constrained(self, weights: Array) -> Array:
        """Turn any numbers into weights with these properties."""
        if not self.never_negative:
            return weights
        order = np.argsort(-weights, axis=1, kind="stable")
        chosen = np.zeros(weights.shape, bool)
        np.put_along_axis(chosen, order[:, : self.most], True, axis=1)
        return np.where(chosen, np.maximum(weights, 0), 0)
