"""The operands of an attention, the keys that each query sees, and the scores.

A key that is hidden by the causal order or by lengths is not read, since a cache may hold anything there. A key that is
hidden by a mask is read, and has weight zero. The result of a query that sees no key is zero.

In a batch of sequences (:mod:`moec.ir.batches`) an entry of the batch is a sequence: its queries lie one behind the
other along the one axis of tokens, and its table gives its pages. One kernel computes the sequences with up to
:data:`FEW_QUERIES` queries, another one the others, in one launch each.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax, tirx
from tvm.script import tirx as T

from moec.targets.base import SizeRange
from moec.targets.tvm.heavy.attention import AttentionInputs, AttentionProblem
from moec.targets.tvm.kernels.int8_rows import INT8_ROWS, scale_at, scale_from
from moec.targets.tvm.kernels.kernel import STORAGE_TYPES, Kernel, why_not_stored
from moec.targets.tvm.lowering.context import LoweringContext

LOWEST = -3.4028234e38
"""The initial largest score, before any key: finite, so that differences from it are not NaN."""
KEYS_TOGETHER = 256
"""Aligned blocks of this many keys, or of a divisor of it, never cross the end of a page."""
FEW_QUERIES = 16
"""The largest number of queries of a head that the kernel for few queries computes: it is faster up to there."""
VALUE_COLUMNS = 256
"""The most columns of the values that a block of threads can sum. If there are more, several blocks compute the same
scores."""


def why_not(problem: AttentionProblem, dtype: str) -> str | None:
    """The reason why no kernel can compute an attention of tensors of ``dtype``, or None."""
    reason = why_not_stored(dtype)
    if reason is not None:
        return reason
    if problem.mask not in ("", "bool", *STORAGE_TYPES):
        return f"mask of type {problem.mask}; the kernel takes bool, {', '.join(STORAGE_TYPES)}"
    return None


@dataclasses.dataclass(frozen=True)
class AttentionLaunch:
    """An attention of tensors of ``dtype``, for the numbers of queries in a range."""

    problem: AttentionProblem
    dtype: str
    queries: SizeRange


def attention_kernel_of(
    name: str,
    build: Callable[[AttentionProblem, str], tirx.PrimFunc],
    how: str,
    why_not_launched: Callable[[AttentionLaunch, str], str | None] = lambda launch, architecture: None,
    tile: Callable[[AttentionProblem], str] | None = None,
) -> Kernel:
    """The :class:`Kernel` record of an attention kernel, which is selected for an :class:`AttentionLaunch`."""
    return Kernel(
        name,
        "y = softmax(q @ k^T * scale + mask) @ v, per head",
        build,
        how=lambda launch, _: f"{how}; no scores in memory",
        why_not=lambda launch, machine: why_not_launched(launch, machine) or why_not(launch.problem, launch.dtype),
        tile=tile,
    )


@dataclasses.dataclass(frozen=True)
class KeyParts:
    """The tensors for the results of parts of the keys, see :mod:`.attention_signatures`, and the number of parts."""

    sums: Any
    statistics: Any
    count: Any


@dataclasses.dataclass(frozen=True)
class AttentionOperands:
    """The tensors of one call, see :mod:`.attention_signatures`, and their dynamic sizes. ``page``: keys of a page, if
    keys are paged; ``parts``: None if keys are never divided. ``spans``, ``table``: of a batch of sequences, of which
    ``batches`` counts those and ``queries`` the queries of all of them."""

    problem: AttentionProblem
    query: Any
    key: Any
    value: Any
    mask: Any
    lengths: Any
    sinks: Any
    result: Any
    batches: Any
    groups: Any
    queries: Any
    keys: Any
    page: Any
    parts: KeyParts | None
    spans: Any = None
    table: Any = None

    def page_of(self, batch: Any, key: Any) -> Any:
        """The page of a key; 0 if keys are not paged. No number in a table leads outside of the pages."""
        if not self.problem.paged:
            return T.int32(0)
        number = key // T.max(self.page, 1)
        if not self.problem.sequences:
            return number
        own = self.table[batch, T.min(number, self.table.shape[1] - 1)]
        return T.cast(T.max(T.min(own, T.cast(self.key.shape[0], "int64") - 1), T.int64(0)), "int32")

    def queries_of(self, batch: Any) -> Any:
        """The number of queries of a batch entry."""
        return T.cast(self.spans[batch, 1], "int32") if self.problem.sequences else self.queries

    def is_served(self, batch: Any) -> Any:
        """Whether this kernel computes a sequence, by its number of queries."""
        queries = self.queries_of(batch)
        return queries > FEW_QUERIES if self.parts is None else queries <= FEW_QUERIES

    def query_place(self, batch: Any, head: Any, query: Any) -> tuple[Any, ...]:
        """The indices of a query, without its column."""
        if not self.problem.sequences:
            return T.cast(batch, "int64"), head, query
        return T.int64(0), head, self.spans[batch, 0] + T.cast(query, "int64")

    def inside_page(self, key: Any) -> Any:
        """The index of a key within its page."""
        return key % T.max(self.page, 1) if self.problem.paged else key

    def last_inside(self, batch: Any) -> Any:
        """The last index within a page that may be read: of the page, or of the keys in use if keys are not paged; at
        least 0."""
        return T.max(self.page if self.problem.paged else self.used_keys(batch), 1) - 1

    def place(self, batch: Any, group: Any, page: Any, inside: Any, column: Any, row: int = 0) -> tuple[Any, ...]:
        """The indices of a number in the tensors of keys and values. ``row``: the numbers of a row, where these are in
        int8."""
        entry = T.int64(0) if self.problem.sequences else T.cast(batch, "int64")
        if not self.problem.paged:
            return entry, group, inside, column
        own = T.cast(page, "int64"), entry, group
        return (*own, inside * row + column) if self.problem.paged == INT8_ROWS else (*own, inside, column)

    def scale(self, tensor: Any, batch: Any, group: Any, page: Any, inside: Any, row: int) -> Any:
        """The scale of a row of int8 of keys or values; 1 for other types."""
        if self.problem.paged != INT8_ROWS:
            return T.float32(1)
        first = scale_at(tensor.shape[-1], row, inside)
        low, high = (tensor[self.place(batch, group, page, 0, first + byte, row)] for byte in (0, 1))
        return scale_from(low, high)

    def result_place(self, batch: Any, head: Any, query: Any, column: Any) -> tuple[Any, ...]:
        """The indices of a number in the result."""
        entry, head, query = self.query_place(batch, head, query)
        return (entry, query, head, column) if self.problem.query_major else (entry, head, query, column)

    @property
    def slices(self) -> int:
        """Slices of a row of the result, each computed by its own block of threads."""
        return slices_of(self.problem)

    @property
    def slice_columns(self) -> int:
        return min(self.problem.value_size, VALUE_COLUMNS)

    def used_keys(self, batch: Any) -> Any:
        """The number of keys in use of a batch entry."""
        if not self.problem.has_lengths:
            return self.keys
        return T.cast(T.max(T.min(self.lengths[batch], T.cast(self.keys, "int64")), T.int64(0)), "int32")

    def frontier(self, batch: Any, query: Any) -> Any:
        """The first key that is hidden from the query, as are all after it, whatever the mask says. It may be negative,
        and it does not decrease from one query to the next."""
        if not self.problem.causal:
            return self.used_keys(batch)
        return T.min(self._behind_own(batch, query), self.used_keys(batch))

    def _behind_own(self, batch: Any, query: Any) -> Any:
        """The key after that which belongs to a query of a causal attention. It may be negative, or not exist."""
        offset = {
            "first": 0,
            "last": self.keys - self.queries,
            "lengths": self.used_keys(batch) - self.queries_of(batch),
        }[self.problem.causal]
        return query + 1 + offset

    def first_key(self, batch: Any, query: Any) -> Any:
        """The first key of a query's window; 0 without a window. It does not decrease from one query to the next."""
        if not self.problem.window:
            return T.int32(0)
        return T.max(self._behind_own(batch, query) - self.problem.window, 0)

    def score(self, total: Any, batch: Any, head: Any, query: Any, key: Any) -> Any:
        """The score of an existing key, float32. ``total``: the product of query and key."""
        value = total * T.float32(self.problem.scale)
        if self.problem.softcap > 0:
            value = T.float32(self.problem.softcap) * T.tanh(value * T.float32(1 / self.problem.softcap))
        return self.masked(value, batch, head, query, key)

    def masked(self, value: Any, batch: Any, head: Any, query: Any, key: Any) -> Any:
        """A score of an existing key, float32, as the mask changes it."""
        if not self.problem.mask:
            return value
        places = zip(self.problem.mask_broadcast, (batch, head, query), strict=True)
        entry = self.mask[(*(T.int64(0) if alone else T.cast(at, "int64") for alone, at in places), key)]
        if self.problem.mask == "bool":
            return T.Select(entry, value, T.float32(float("-inf")))
        return value + T.cast(entry, "float32")


SPANS, TABLE = 4, 5
"""Positions of these among the operands of kernels for a batch of sequences."""
_MISSING = {"mask": ((1, 1, 1, 1), "bool"), "lengths": ((1,), "int64"), "sinks": ((1,), "float32")}
"""Shapes and types of the tensors in place of missing operands."""


def kernel_operands(lowering: LoweringContext, inputs: AttentionInputs) -> list[relax.Expr]:
    """The operands of the kernels, with tensors that no kernel reads in place of missing ones."""
    if inputs.batch is not None:
        query, key, value, _, lengths, spans, table, sinks = inputs.operands
        needed = [query, key, value, lengths, spans, table]
        return [*(operand for operand in needed if operand is not None), _or_missing(lowering, "sinks", sinks)]
    *needed, mask, lengths, sinks = inputs.operands
    operands = [operand for operand in needed if operand is not None]
    others = zip(_MISSING, (mask, lengths, sinks), strict=True)
    return [*operands, *(_or_missing(lowering, name, operand) for name, operand in others)]


def _or_missing(lowering: LoweringContext, name: str, operand: relax.Expr | None) -> relax.Expr:
    shape, dtype = _MISSING[name]
    if operand is not None:
        return operand
    return lowering.add_weight(f"no_{name}", shape, dtype, functools.partial(np.zeros, shape, dtype))


def slices_of(problem: AttentionProblem) -> int:
    """Slices of a row of the result, each computed by its own block of threads."""
    return -(-problem.value_size // VALUE_COLUMNS)


def quotient(total: Any, weights: Any) -> Any:
    """The weighted sum of the values (``total``) divided by the sum of the weights; zero if no key is seen."""
    return T.Select(weights == T.float32(0), T.float32(0), total / weights)


@T.inline
def _count_sink(sinks, head, is_counted, largest, totals, at):
    if is_counted:
        largest[at] = T.max(sinks[head], T.float32(LOWEST))
        totals[at] = T.exp(sinks[head] - largest[at])


@T.inline
def start_row(operands, head, is_counted, largest, totals, at):
    """Initialise the largest score ``largest[at]`` and the sum of weights ``totals[at]`` of a row. They include the
    sink of the head if ``is_counted``. If several threads share a row, only one of them may count it."""
    largest[at] = T.float32(LOWEST)
    totals[at] = T.float32(0)
    if operands.problem.has_sinks:
        _count_sink(operands.sinks, head, is_counted, largest, totals, at)
