"""Sums over the inputs of layers: the arrays of :mod:`moec.profiles.measures`, batch by batch.

During the batches, tokens are counted, and those that sums need are written to a file, once for all experts of a layer.
All matrix products follow at the end, expert by expert. A second moment is therefore in memory only while it is
computed, from at most as many rows as :func:`moec.profiles.measures.enough` says.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError
from moec.common.mapped_files import release_pages
from moec.common.names import node_name
from moec.ir.expert_outputs import expert_output
from moec.ir.expert_weights import ExpertWeights
from moec.ir.semantics import pairs_by_expert
from moec.ir.weights.format import WeightFormat
from moec.profiles.measures import BINS, PRIOR_ROWS, ROWS, enough, evenly, mean_weight, packed
from moec.tools.profiling.one_expert import AT_ONCE, ExpertRows, MeasuredExpert, measure_expert, weighted
from moec.tools.profiling.stored_rows import StoredRows

Array = np.ndarray[Any, Any]

MeasureExperts = Callable[[Iterable[ExpertRows]], Iterable[MeasuredExpert]]
"""Function that measures experts, in their order."""


class KeptRows:
    """A uniform random sample of rows, in the order in which they came, always the same.

    A generator gives every row a number, and the rows with the smallest numbers stay. Taking every n-th row instead
    would often hit the same place of a text.
    """

    def __init__(self, most: int) -> None:
        self._most, self._random, self._numbers = most, np.random.default_rng(0), np.zeros(0)
        self._kept: list[Array] = []
        self._staying = np.zeros(0, np.int64)

    def due(self, count: int) -> Array:
        """Select from the next ``count`` rows those that :meth:`add` has to be given. Returns their places,
        ascending."""
        numbers = np.concatenate([self._numbers, self._random.random(count)])
        kept, old = np.sort(np.argsort(numbers, kind="stable")[: self._most]), len(self._numbers)
        self._numbers, self._staying = numbers[kept], kept[kept < old]
        return kept[kept >= old] - old

    def add(self, *columns: Array) -> None:
        """Add the rows that were due, as arrays of equal length."""
        old = self._kept or [column[:0] for column in columns]
        self._kept = [np.concatenate([column[self._staying], new]) for column, new in zip(old, columns, strict=True)]

    def arrays(self, *shapes: tuple[int, ...]) -> tuple[Array, ...]:
        """Return the sampled rows of each column; ``shapes``: those of one row."""
        kept = self._kept or [np.zeros((0, *shape)) for shape in shapes]
        return tuple(np.ascontiguousarray(column, np.float32) for column in kept)


@dataclasses.dataclass
class _SeenPairs:
    """Pairs of one expert that its sums use: places of their tokens among the stored rows, routing weights, and
    shares."""

    places: list[Array] = dataclasses.field(default_factory=list)
    gates: list[Array] = dataclasses.field(default_factory=list)
    shares: list[Array] = dataclasses.field(default_factory=list)
    count: int = 0

    def arrays(self) -> tuple[Array, Array, Array]:
        """Return places, weights and shares [n]."""
        columns = ((self.places, np.int64), (self.gates, np.float32), (self.shares, np.float32))
        places, gates, shares = (np.concatenate([np.empty(0, dtype), *parts]) for parts, dtype in columns)
        return places, gates, shares

    def add(self, places: Array, gates: Array, shares: Array) -> None:
        for parts, new in zip((self.places, self.gates, self.shares), (places, gates, shares), strict=True):
            parts.append(new)
        self.count += len(places)


class ExpertsSums:
    """Sums of a layer of experts."""

    def __init__(self, node: ir.Node, k: int, folder: pathlib.Path, name: str, moments: bool) -> None:
        self.node, self._moments = node, moments
        self.weights, self.k, self.tokens = ExpertWeights(node), k, 0
        experts = self.weights.experts
        self._count, self._gate_sum = np.zeros(experts, np.int64), np.zeros(experts)
        self._gates, self._ratios = np.zeros((experts, BINS), np.int64), np.zeros((k, BINS), np.int64)
        self._pairs = np.zeros((experts, experts), np.int64)
        self._following: Array | None = None
        self._rows, self._sample = [KeptRows(ROWS) for _ in range(experts)], KeptRows(8 * ROWS)
        self._seen = [_SeenPairs() for _ in range(experts)]
        self._stored = StoredRows(folder / f"{name}.x", self.weights.inner)

    def add(self, x: Array, gates: Array, ids: Array) -> Array:
        """Add tokens [T,d] with their weights and ids [T,k]. Returns the selection of experts [T,E]. Raises OSError for
        a full disk."""
        self.tokens += len(x)
        stored = ids < self.weights.experts  # other experts return their input
        kept_input = np.where(stored, 0, gates).sum(axis=1)
        ids = np.where(stored, ids, -1)
        gates = np.where(ids < 0, 0, gates)
        chosen, dense = self._add_counts(gates, shares := _shares(gates), ids)
        due = self._sample.due(len(x))
        self._sample.add(x[due], dense[due], kept_input[due])
        pairs = list(pairs_by_expert(ids))
        for expert, tokens, slots in pairs:
            due = self._rows[expert].due(len(tokens))
            self._rows[expert].add(x[tokens[due]], gates[tokens[due], slots[due]])
        self._store(x, gates, shares, pairs)
        return chosen

    def _store(self, x: Array, gates: Array, shares: Array, pairs: Sequence[tuple[int, Array, Array]]) -> None:
        """Store the tokens that any expert needs for its sums."""
        most = enough(self.weights.inner)
        needed = np.zeros(len(x), bool)
        needs = [(expert, *(column[: most - self._seen[expert].count] for column in pair)) for expert, *pair in pairs]
        for _, tokens, _ in needs:
            needed[tokens] = True
        places = self._stored.count + np.cumsum(needed) - 1
        for expert, tokens, slots in needs:
            self._seen[expert].add(places[tokens], gates[tokens, slots], shares[tokens, slots])
        if needed.any():
            self._stored.add(x[needed])

    def add_following(self, chosen: Array, following: Array) -> None:
        """Count pairs of this layer's selection [T,E] and the next layer's [T,E']."""
        pairs = chosen.T.astype(np.float32) @ following.astype(np.float32)
        self._following = pairs if self._following is None else self._following + pairs

    def _add_counts(self, gates: Array, shares: Array, ids: Array) -> tuple[Array, Array]:
        """Update all counts. Returns the selection and the weights as [T,E]."""
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

    def arrays(
        self, forms: Sequence[WeightFormat], measure: MeasureExperts | None = None
    ) -> Iterator[tuple[str, Array]]:
        """Compute all arrays, by name. ``measure`` measures experts in parallel. Raises MoecError for sums that
        overflow."""
        yield from (("count", self._count), ("gate_sum", self._gate_sum), ("pairs", self._pairs))
        yield from (("gate_histogram", self._gates), ("ratio_histogram", self._ratios))
        yield "measured", np.array([seen.count for seen in self._seen])
        if self._following is not None:
            yield "following", np.rint(self._following).astype(np.int64)
        sample, gates, kept_input = self._sample.arrays((self.weights.inner,), (self.weights.experts,), ())
        yield from (("sample", sample), ("sample_gates", gates))
        yield "sample_output", self._output(sample, gates, kept_input)
        prior, measured = weighted(self.weights.spec, *_prior(sample, gates)), []
        asked = (self._rows_of(expert, prior, forms) for expert in range(len(self._count)))
        every = map(functools.partial(measure_expert, self.node), asked) if measure is None else measure(asked)
        for expert, result in enumerate(every):
            self._check(expert, result)
            rows, row_gates = self.rows(expert)
            yield from ((f"rows/{expert}", rows), (f"row_gates/{expert}", row_gates))
            yield from ((f"{name}/{expert}", moment) for name, moment in result.moments.items())
            result.moments.clear()
            measured.append(result)
        for name in ("output_norm", "saliency", "hidden", "energy"):
            yield name, np.array([getattr(result, name) for result in measured])
        for name, errors in (
            ("error", [result.errors for result in measured]),
            ("prior_error", [result.prior_errors for result in measured]),
        ):
            by_form = np.array(errors).swapaxes(0, 1)
            yield from ((f"{name}/{form}", error) for form, error in zip(forms, by_form, strict=True))

    def _rows_of(self, expert: int, prior: tuple[Array, Array], forms: Sequence[WeightFormat]) -> ExpertRows:
        """Collect the rows of an expert. ``prior``: rows that stand for those of any expert."""
        pairs = self._seen[expert].arrays()
        return ExpertRows(expert, self._stored, *pairs, self.rows(expert), prior, tuple(forms), self._moments)

    def _check(self, expert: int, sums_of: MeasuredExpert) -> None:
        """Raise MoecError where sums are beyond the range of float32."""
        sums = [sums_of.output_norm, sums_of.saliency, sums_of.energy, sums_of.hidden, *sums_of.moments.values()]
        if not all(np.isfinite(array).all() for array in sums):
            where = f"node {node_name(self.node)}: expert {expert}"
            raise MoecError(f"{where}: sums over what it reads or gives are not finite; expected data of usual sizes")

    def _output(self, x: Array, gates: Array, kept_input: Array) -> Array:
        """Compute the layer's output [n,width] for tokens [n,d]: the sum of its experts with weights [n,E], and of
        those that return their input, with the total weight ``kept_input`` [n]."""
        output = np.zeros((len(x), self.weights.width), np.float32)
        for expert in range(self.weights.experts):
            (tokens,) = np.nonzero(gates[:, expert])
            if len(tokens):
                rows, own = weighted(self.weights.spec, x[tokens], gates[tokens, expert])
                output[tokens] += own[:, None] * expert_output(self.weights, expert, rows)[1]
                release_pages()
        if kept_input.any():
            output += kept_input[:, None] * x
        return output

    def rows(self, expert: int) -> tuple[Array, Array]:
        """Return the sampled rows [n,d] of an expert and their weights [n]."""
        rows, gates = self._rows[expert].arrays((self.weights.inner,), ())
        return rows, gates

    @property
    def count(self) -> Array:
        return self._count


class InputSums:
    """Sums of a value that linears read."""

    def __init__(self, size: int, folder: pathlib.Path, name: str, moments: bool) -> None:
        self.tokens, self.size, self._moments = 0, size, moments
        self._rows, self._stored = KeptRows(4 * ROWS), StoredRows(folder / f"{name}.x", size)

    def add(self, x: Array) -> None:
        """Add rows [T,K]. Raises OSError for a full disk."""
        self.tokens += len(x)
        self._rows.add(x[self._rows.due(len(x))])
        x = x[: enough(self.size) - self._stored.count]
        if len(x):
            self._stored.add(x)

    def rows(self) -> Array:
        return self._rows.arrays((self.size,))[0]

    def arrays(self) -> dict[str, Array]:
        result = {"measured": np.array(self._stored.count), "rows": self.rows()}
        if self._moments:
            moment, x = np.zeros((self.size, self.size), np.float32), self._stored.read()
            for start in range(0, len(x), AT_ONCE):
                rows = x[start : start + AT_ONCE]
                moment += rows.T @ rows
            result["moment_in"] = packed(moment)
        return result


def _prior(sample: Array, gates: Array) -> tuple[Array, Array]:
    """Take a few tokens [n,d] of the layer's sample, with the mean weight of its pairs for each [n]."""
    rows = evenly(sample, PRIOR_ROWS)
    return rows, np.full(len(rows), mean_weight(gates), np.float32)


def _shares(gates: Array) -> Array:
    """Weights as shares of the sum of a token's weights."""
    total = np.abs(gates).sum(axis=1, keepdims=True)
    return np.divide(np.abs(gates), total, out=np.zeros_like(gates), where=total > 0)


def _bins(shares: Array) -> Array:
    return np.minimum((shares * BINS).astype(np.int64), BINS - 1)
