"""Selection of the next tokens of sequences side by side: on the host, or on the device where a program ran."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from moec.runtime.device import Device
from moec.runtime.device_results import DeviceResults
from moec.runtime.sampling import NOT_NUMBERS, Option, Sampling, not_numbers

Rows = Collection[int]
"""Indices of sequences."""


class TokenSelection:
    """The selection of tokens for the sequences of one session: options, random numbers, and the tokens so far.

    ``prompts``: token ids of each sequence, to which each selected token is added. ``places``: a number for each
    sequence; random numbers depend on it and on the seed alone."""

    def __init__(self, sampling: Sampling, prompts: Sequence[Sequence[int]], places: Sequence[int]) -> None:
        self._sampling, self._prompts = sampling, prompts
        self._randoms = [np.random.default_rng([sampling.seed, place]) for place in places]
        self._seen: np.ndarray | None = None
        self._counts: list[collections.Counter[int]] = [collections.Counter() for _ in places]
        self._there: _DeviceMemory | None = None

    def choose(
        self, logits: np.ndarray, rows: Rows, allowed: Mapping[int, np.ndarray] = MappingProxyType({})
    ) -> np.ndarray:
        """Select tokens on the host, by ``logits`` float32 [batch, vocabulary]. ``allowed``: for some sequences, the
        ids of which theirs are selected, ascending. Returns int64 [batch], with 0 for sequences that are not among
        ``rows``. Raises MoecError as :meth:`moec.runtime.sampling.Sampling.choose`."""
        if self._seen is None:
            self._seen = self._seen_among(logits.shape[1])
        tokens = np.zeros(len(logits), np.int64)
        for row in sorted(rows):
            state = self._seen[row], self._randoms[row], self._counts[row]
            token = self._sampling.choose(logits[row], *state, allowed.get(row))
            tokens[row] = token
            self._seen[row, token] = True
            self._counts[row][token] += 1
        return tokens

    def choose_there(self, results: DeviceResults, logits: str, kernel: str, rows: Rows) -> np.ndarray:
        """Do the same on the device, by the output ``logits`` [batch, new, vocabulary] and the program's ``kernel``
        (:mod:`moec.targets.gpu.kernels.sample`)."""
        tensor = results.tensors[logits]
        if self._there is None:
            self._there = _DeviceMemory.of(results.device, self._seen_among(int(tensor.shape[2])))
        idle = [0.0] * len(Option)
        options = [self._sampling.options(random) if row in rows else idle for row, random in enumerate(self._randoms)]
        tokens = self._there.select(results, tensor, np.array(options), kernel)
        if any(tokens[row] == NOT_NUMBERS for row in rows):
            raise not_numbers()
        return tokens

    def _seen_among(self, vocabulary: int) -> np.ndarray:
        seen = np.zeros((len(self._prompts), vocabulary), bool)
        for row, prompt in enumerate(self._prompts):
            seen[row, [token for token in prompt if token < vocabulary]] = True
        return seen


@dataclasses.dataclass(frozen=True)
class _DeviceMemory:
    """Memory of a selection on the device: the kernel's ``seen``, ``weights`` and ``tokens``; ``place`` moves options
    there."""

    place: Any
    seen: Any
    weights: Any
    tokens: Any

    @classmethod
    def of(cls, device: Device, seen: np.ndarray) -> _DeviceMemory:
        weights, tokens = (
            device.place(device.new(shape, np.dtype(np.int64))) for shape in (seen.shape, seen.shape[:1])
        )
        return cls(device.placing(), device.place(seen.view(np.uint8)), weights, tokens)

    def select(self, results: DeviceResults, logits: Any, options: np.ndarray, kernel: str) -> np.ndarray:
        (placed,) = self.place([options])
        results.call_kernel(kernel, [logits, placed, self.seen, self.weights, self.tokens])
        (tokens,) = results.device.fetch_all([self.tokens])
        return tokens
