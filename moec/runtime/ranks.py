"""The exchange of rows between the ranks of a distributed run, as programs see it.

A program with experts on several ranks (``moec.SendRows`` in its graph) calls these functions in the same order on all
ranks. Weights and sums stay with the rank that owns a token; only rows of experts and their results travel.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

LEAST_OF_HALF = 256
"""Tokens from which half of a run is worth a run of its own, in turn with the other half."""
LEAST_WAIT = 0.25
"""Share of a run that a rank waits for rows from which halves pay. Both: benchmarks/results/ranks.md."""


@dataclasses.dataclass(frozen=True)
class ReceivedRows:
    """Rows that a rank computes: ``rows`` [P,d] and their ``experts`` int32 [P], sorted by nothing in particular.
    ``weights`` float [P] are routing weights where the experts need them, else None."""

    rows: np.ndarray
    experts: np.ndarray
    weights: np.ndarray | None = None


class Ranks(Protocol):
    """The exchange of one rank with all others. Layers are numbered from 0 in the order of the program.

    Sizes: T tokens of this rank, k experts per token, P pairs that this rank computes, d and n columns."""

    def begin_run(self) -> None:
        """Begin a run of the program, which is one on all ranks."""
        ...

    def send(self, layer: int, rows: np.ndarray, experts: np.ndarray, weights: np.ndarray | None) -> None:
        """Begin to send rows [T,d] to the ranks that hold their ``experts`` int32 [T,k]. ``weights``: [T,k] or None.
        The arrays stay unchanged until :meth:`receive` of the layer returns. Pairs whose id is negative are not
        computed; those whose id is at least the number of experts are computed by this rank."""
        ...

    def receive(self, layer: int) -> ReceivedRows:
        """Wait for the rows that this rank computes."""
        ...

    def give_back(self, layer: int, results: np.ndarray) -> np.ndarray:
        """Return the results [P,n] to the owners of their tokens; wait for those of this rank's pairs, in order:
        [T*k,n], with zeros for pairs that are not computed."""
        ...


class OneRank:
    """The exchange of a run with a single rank: it computes all pairs, in their order. Its arrays may be PyTorch's
    tensors on a GPU."""

    def __init__(self) -> None:
        self._sent: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray | None]] = {}

    def begin_run(self) -> None:
        self._sent.clear()

    def send(self, layer: int, rows: np.ndarray, experts: np.ndarray, weights: np.ndarray | None) -> None:
        self._sent[layer] = rows, experts, weights

    def receive(self, layer: int) -> ReceivedRows:
        rows, experts, weights = self._sent[layer]
        chosen = experts >= 0
        tokens, slots = np.nonzero(chosen) if isinstance(chosen, np.ndarray) else chosen.nonzero(as_tuple=True)
        return ReceivedRows(rows[tokens], experts[tokens, slots], None if weights is None else weights[tokens, slots])

    def give_back(self, layer: int, results: np.ndarray) -> np.ndarray:
        _, experts, _ = self._sent.pop(layer)
        shape = (len(experts) * experts.shape[1], results.shape[1])
        on_host = isinstance(results, np.ndarray)
        pairs = np.zeros(shape, results.dtype) if on_host else results.new_zeros(shape)
        pairs[experts.reshape(-1) >= 0] = results
        return pairs
