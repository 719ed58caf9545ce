"""Contributions of the experts to y, separated by the known weights of the router."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from moec.common.budgets import PROBED_MIXTURES
from moec.passes.raising.block import Block
from moec.passes.raising.dataflow import Array
from moec.passes.raising.failure import NotUnderstoodError
from moec.passes.raising.router import RoutingProposal, as_mixture, sample_logits
from moec.passes.raising.trials import reaching_all

TOLERANCE = 1e-6
DECIMALS = 6
"""Decimals to which equal mixtures of weights agree."""
MOST_MIXTURES = 8
MOST_WORK = 1 << 34
"""Largest number of multiplications of one evaluation of a block; probing needs some dozens of evaluations."""
Given = Sequence[Mapping[ir.Value, Array]]
"""Values that are given instead of computed, for each run."""


@dataclasses.dataclass(frozen=True)
class Mixing:
    """Tokens n that reach every expert, divided into runs that the block can compute at once, and the mixtures [n,E]
    that the router computes from their logits.

    ``by_slot`` [n,k*E] are the weights of each expert as a token's first choice, as its second, and so on. They
    separate the experts' contributions if each slot may have a copy of all experts' weights.
    """

    block: Block
    logits: list[Array]
    mixture: Array
    by_slot: Array | None = None

    @staticmethod
    def of(block: Block, routing: RoutingProposal, *, by_slot: bool = False) -> Mixing:
        """Choose tokens. Raises NotUnderstoodError unless they separate all experts."""
        E, step = block.E, max(block.row_step, 1)
        tokens = 4 * E * (routing.spec.k if by_slot else 1) + 16
        logits = reaching_all(block, routing, np.random.default_rng(9).normal(size=(tokens, E)) * 2)
        size = step if block.rows_are_fixed else -(-min(len(logits), block.tokens_at_once()) // step) * step
        runs = -(-len(logits) // size)
        if runs * size * block.work_per_token() > MOST_WORK:
            raise NotUnderstoodError("it is too large for its experts to be probed")
        parts = np.split(np.resize(logits, (runs * size, E)), runs)
        choices = [routing.run(block, part) for part in parts]
        mixture = np.concatenate([as_mixture(*chosen, E) for chosen in choices])
        slots = np.concatenate([_by_slot(*chosen, E) for chosen in choices]) if by_slot else None
        mixing = Mixing(block, parts, mixture, slots)
        if not PROBED_MIXTURES.allows(mixing._told_apart_by.size * mixing._told_apart_by.shape[1]):
            raise NotUnderstoodError("it has too many experts for them to be probed")
        if mixing._weighted_after.rank < mixing._told_apart_by.shape[1]:
            raise NotUnderstoodError("its experts cannot be told apart: the router gives some of them no weight")
        return mixing

    @property
    def _told_apart_by(self) -> Array:
        return self.mixture if self.by_slot is None else self.by_slot

    @functools.cached_property
    def _weighted_after(self) -> _LeastSquares:
        return _LeastSquares.of(self._told_apart_by)

    @functools.cached_property
    def _weighted_before(self) -> _LeastSquares:
        return _LeastSquares.of((self._told_apart_by != 0).astype(float))

    def run(
        self, x: Array, outputs: list[ir.Value], replacements: Given | Mapping[ir.Value, Array] = ()
    ) -> list[list[Array]]:
        """The block's values ``outputs`` of each run, with the row x [d] for all tokens."""
        results = []
        for number, logits in enumerate(self.logits):
            replaced = (
                replacements if isinstance(replacements, Mapping) else replacements[number] if replacements else {}
            )
            results.append(self.block.evaluate(np.tile(x, (len(logits), 1)), logits, outputs, replaced))
        return results

    def explains_y(self) -> bool:
        """Whether y of equal tokens is a mixture, whatever the experts are; not if weights multiply their tokens."""
        (x,) = np.random.default_rng(3).normal(size=(1, self.block.d))
        y = np.concatenate([y.reshape(-1, self.block.d) for (y,) in self.run(x, [self.block.y])])
        return self.of_experts(y, on_input=False) is not None

    def y(self, replacements: Given) -> Array:
        """y [n,d]."""
        zeros = np.zeros(self.block.d)
        return np.concatenate([y.reshape(-1, self.block.d) for (y,) in self.run(zeros, [self.block.y], replacements)])

    def of_experts(self, y: Array, *, on_input: bool) -> Array | None:
        """The experts' parts [E,d] of y [n,d], those of first choices; None if y is not a mixture of them.
        ``on_input``: weights multiply the tokens."""
        squares = self._weighted_before if on_input else self._weighted_after
        parts = squares.inverse @ y
        apart = np.abs(squares.weights @ parts - y).max(initial=0)
        return parts[: self.block.E] if apart <= TOLERANCE * np.abs(y).max(initial=1e-300) else None


@dataclasses.dataclass(frozen=True)
class _LeastSquares:
    """The fit of y [n,d] by ``weights`` [n,m]: the matrix that maps y to its parts [m,d], computed once for all
    fits."""

    weights: Array
    inverse: Array
    rank: int

    @staticmethod
    def of(weights: Array) -> _LeastSquares:
        left, sizes, right = np.linalg.svd(weights, full_matrices=False)
        significant = sizes > sizes.max(initial=0) * max(weights.shape) * np.finfo(np.float64).eps
        inverse = (right[significant].T / sizes[significant]) @ left[:, significant].T
        return _LeastSquares(weights, inverse, int(significant.sum()))


def explaining_routings(block: Block, routings: Sequence[RoutingProposal]) -> list[RoutingProposal]:
    """The routings with whose mixtures y can be explained, whatever the experts are. Only the first different mixtures
    are tried.

    Raises NotUnderstoodError if no routing separates the experts.
    """
    logits = sample_logits(block.E)[: block.row_step if block.rows_are_fixed else None]
    alike: dict[bytes, list[RoutingProposal]] = {}
    for routing in routings:
        mixture = as_mixture(*routing.run(block, logits), block.E)
        alike.setdefault(np.round(mixture, DECIMALS).tobytes(), []).append(routing)
    explaining: list[RoutingProposal] = []
    reason = None
    for same in itertools.islice(alike.values(), MOST_MIXTURES):
        try:
            explaining += same if Mixing.of(block, same[0]).explains_y() else []
        except NotUnderstoodError as error:
            reason = error
    if reason is not None and not explaining:
        raise reason
    return explaining


def _by_slot(weights: Array, ids: Array, E: int) -> Array:
    """Weights [T,k] and ids [T,k] as a matrix [T,k*E]; ids of -1 are left out."""
    slots = ids + np.arange(ids.shape[1]) * E
    return as_mixture(weights, np.where(ids < 0, -1, slots), ids.shape[1] * E)
