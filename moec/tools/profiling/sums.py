"""Sums over what layers see; the arrays of :mod:`moec.profile.measures`, batch by batch."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir.semantics import pairs_by_expert
from moec.ir.weights.experts import ExpertWeights
from moec.ir.weights.outputs import expert_output
from moec.profile.measures import BINS, ROWS, enough, packed

Array = np.ndarray[Any, Any]


class Moment:
    """A sum of x x^T [n,n], in a file: those of a model together may be larger than its weights."""

    def __init__(self, folder: pathlib.Path, name: str, count: int, size: int) -> None:
        self._sums = np.memmap(folder / f"{name}.sums", np.float32, "w+", shape=(count, size, size))

    def add(self, index: int, rows: Array) -> None:
        self._sums[index] += rows.T @ rows

    def packed(self, index: int) -> Array:
        return packed(np.asarray(self._sums[index]))


class KeptRows:
    """A few rows, evenly from all that came: every ``stride``-th, where the stride doubles when they get too many."""

    def __init__(self, most: int) -> None:
        self._most, self._stride, self._seen = most, 1, 0
        self._kept: list[tuple[Array, ...]] = []

    def add(self, *columns: Array) -> None:
        """Arrays of equal length."""
        first = -self._seen % self._stride
        chosen = (column[first :: self._stride] for column in columns)
        self._kept += [tuple(np.array(one) for one in row) for row in zip(*chosen, strict=True)]
        self._seen += len(columns[0])
        while len(self._kept) > self._most:
            self._kept, self._stride = self._kept[::2], 2 * self._stride

    def arrays(self, *shapes: tuple[int, ...]) -> tuple[Array, ...]:
        """What was kept of each column; ``shapes``: those of one row."""
        return tuple(
            np.array([row[column] for row in self._kept], np.float32).reshape(len(self._kept), *shape)
            for column, shape in enumerate(shapes)
        )


class ExpertsSums:
    """Of a layer of experts."""

    def __init__(self, node: ir.Node, k: int, folder: pathlib.Path, name: str, moments: bool) -> None:
        self.weights, self.k, self.tokens = ExpertWeights(node), k, 0
        experts, hidden = self.weights.experts, self.weights.hidden
        self._count, self._measured = np.zeros(experts, np.int64), np.zeros(experts, np.int64)
        self._gate_sum, self._output_norm, self._saliency = (np.zeros(experts) for _ in range(3))
        self._gates, self._ratios = np.zeros((experts, BINS), np.int64), np.zeros((k, BINS), np.int64)
        self._pairs, self._hidden = np.zeros((experts, experts), np.int64), np.zeros((experts, hidden))
        self._following: Array | None = None
        self._rows, self._sample = [KeptRows(ROWS) for _ in range(experts)], KeptRows(8 * ROWS)
        self._moments: tuple[Moment, Moment] | None = None
        if moments:
            sizes = (("in", self.weights.inner), ("hidden", hidden))
            first, second = (Moment(folder, f"{name}.{what}", experts, size) for what, size in sizes)
            self._moments = first, second

    def add(self, x: Array, gates: Array, ids: Array) -> Array:
        """Tokens [T,d], their weights and ids [T,k]; returns which experts [T,E] they go to."""
        self.tokens += len(x)
        ids = np.where(ids < self.weights.experts, ids, -1)  # others give back their input
        gates = np.where(ids < 0, 0, gates)
        shares = _shares(gates)
        chosen, dense = self._add_counts(gates, shares, ids)
        self._sample.add(x, dense)
        for expert, tokens, slots in pairs_by_expert(ids):
            self._rows[expert].add(x[tokens], gates[tokens, slots])
            left = max(0, enough(self.weights.inner) - int(self._measured[expert]))
            tokens, slots = tokens[:left], slots[:left]
            if len(tokens):
                self._add_expert(expert, x[tokens], gates[tokens, slots], shares[tokens, slots])
        return chosen

    def add_following(self, chosen: Array, following: Array) -> None:
        """What tokens [T,E] the experts see, and which [T,E'] those of the next layer."""
        found = chosen.T.astype(np.float32) @ following.astype(np.float32)
        self._following = found if self._following is None else self._following + found

    def _add_counts(self, gates: Array, shares: Array, ids: Array) -> tuple[Array, Array]:
        """Returns which experts tokens go to and with which weights, both [T,E]."""
        experts = self.weights.experts
        here = ids >= 0
        self._count += np.bincount(ids[here], minlength=experts)
        self._gate_sum += np.bincount(ids[here], gates[here], minlength=experts)
        np.add.at(self._gates, (ids[here], _bins(shares[here])), 1)
        first = np.abs(gates).max(axis=1, keepdims=True, initial=0)
        ratios = np.divide(np.abs(gates), first, out=np.zeros_like(gates), where=first > 0)
        for slot, ratio in enumerate(-np.sort(-ratios, axis=1).T):
            self._ratios[slot] += np.bincount(_bins(ratio), minlength=BINS)
        chosen = np.zeros((len(ids), experts), np.float32)
        dense = np.zeros((len(ids), experts), np.float32)
        tokens, slots = np.nonzero(here)
        chosen[tokens, ids[tokens, slots]] = 1
        np.add.at(dense, (tokens, ids[tokens, slots]), gates[tokens, slots])
        self._pairs += np.rint(chosen.T @ chosen).astype(np.int64)
        return chosen, dense

    def _add_expert(self, expert: int, x: Array, gates: Array, shares: Array) -> None:
        rows = x * gates[:, None] if self.weights.spec.weight_on_input else x
        hidden, y = expert_output(self.weights, expert, rows)
        norms, roots = np.linalg.norm(y, axis=1), np.sqrt(np.abs(gates))[:, None]
        self._measured[expert] += len(x)
        self._output_norm[expert] += norms.sum()
        self._saliency[expert] += shares @ norms
        self._hidden[expert] += np.abs(gates) @ np.abs(hidden)
        if self._moments is not None:
            for moment, inputs in zip(self._moments, (rows, hidden), strict=True):
                moment.add(expert, inputs * roots)

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """All arrays but errors by name."""
        yield from (("count", self._count), ("measured", self._measured), ("gate_sum", self._gate_sum))
        yield from (("gate_histogram", self._gates), ("ratio_histogram", self._ratios), ("pairs", self._pairs))
        yield from (("output_norm", self._output_norm), ("saliency", self._saliency), ("hidden", self._hidden))
        if self._following is not None:
            yield "following", np.rint(self._following).astype(np.int64)
        sample, gates = self._sample.arrays((self.weights.inner,), (self.weights.experts,))
        yield from (("sample", sample), ("sample_gates", gates))
        for expert in range(self.weights.experts):
            rows, row_gates = self.rows(expert)
            yield from ((f"rows/{expert}", rows), (f"row_gates/{expert}", row_gates))
            for name, moment in zip(("moment_in", "moment_hidden"), self._moments or (), strict=False):
                yield f"{name}/{expert}", moment.packed(expert)

    def rows(self, expert: int) -> tuple[Array, Array]:
        """The rows [n,d] that were kept of an expert, and their weights [n]."""
        rows, gates = self._rows[expert].arrays((self.weights.inner,), ())
        return rows, gates

    @property
    def count(self) -> Array:
        return self._count


class InputSums:
    """Of a value that linears read."""

    def __init__(self, size: int, folder: pathlib.Path, name: str, moments: bool) -> None:
        self.tokens = self._measured = 0
        self.size, self._rows = size, KeptRows(4 * ROWS)
        self._moment = Moment(folder, name, 1, size) if moments else None

    def add(self, x: Array) -> None:
        """Rows [T,K]."""
        self.tokens += len(x)
        self._rows.add(x)
        x = x[: max(0, enough(self.size) - self._measured)]
        self._measured += len(x)
        if self._moment is not None and len(x):
            self._moment.add(0, x)

    def rows(self) -> Array:
        return self._rows.arrays((self.size,))[0]

    def arrays(self) -> Iterator[tuple[str, Array]]:
        yield from (("measured", np.array(self._measured)), ("rows", self.rows()))
        if self._moment is not None:
            yield "moment_in", self._moment.packed(0)


def _shares(gates: Array) -> Array:
    """Weights as shares of all weights of the token."""
    total = np.abs(gates).sum(axis=1, keepdims=True)
    return np.divide(np.abs(gates), total, out=np.zeros_like(gates), where=total > 0)


def _bins(shares: Array) -> Array:
    return np.minimum((shares * BINS).astype(np.int64), BINS - 1)
