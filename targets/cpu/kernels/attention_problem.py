"""The operands of an attention, the keys that each query sees, and what is done to scores.

A variant that adds numbers to scores, bounds them or hides keys is written here alone: both kernels ask this module.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tvm.script import tirx as T

from moec.targets.cpu.kernels.elementary import exponential
from moec.targets.cpu.kernels.emit import Parameter, loop, named
from moec.targets.tvm.heavy.attention import AttentionProblem
from moec.targets.tvm.kernels.int8_rows import INT8_ROWS, rows_in, scale_at, scale_from, scales_from

FEW_QUERIES = 8
"""Up to so many queries of a batch share out the keys, more the rows: a number of queries, so that a token has the same
bits in every step of a few tokens."""
_FEW_HEADS = 16
"""With more query heads per head of keys, one query shares out the rows, too."""
LOWEST = -3.4028234e38
"""What the largest score of no key is: finite, so that differences to it are."""


def attention_parameters(problem: AttentionProblem, dtype: str) -> list[Parameter]:
    """The parameters of :func:`moec.targets.cpu.kernels.attention.attention`, by the names of
    :class:`AttentionBuffers`."""
    before, stored = (("pages", "B", "G"), problem.paged) if problem.paged else (("B", "G"), dtype)
    inner = [("page" if problem.paged else "P", size) for size in (problem.head_size, problem.value_row)]
    if problem.paged == INT8_ROWS:
        inner = [("key_page",), ("value_page",)]
    parameters = [
        Parameter("query", ("B", "H", "S", problem.head_size), dtype),
        Parameter("key", (*before, *inner[0]), stored),
        Parameter("value", (*before, *inner[1]), stored),
    ]
    if problem.mask:
        sizes = [1 if is_broadcast else size for is_broadcast, size in zip(problem.mask_broadcast, "BHS", strict=True)]
        parameters.append(Parameter("mask", (*sizes, "L"), problem.mask))
    if problem.has_lengths:
        parameters.append(Parameter("lengths", ("N" if problem.sequences else "B",), "int64"))
    if problem.sequences:
        parameters += [Parameter("spans", ("N", 2), "int64"), Parameter("table", ("N", "M"), "int64")]
    if problem.has_sinks:
        parameters.append(Parameter("sinks", ("H",), "float32"))
    places = ("B", "S", "H") if problem.query_major else ("B", "H", "S")
    return [*parameters, Parameter("result", (*places, problem.value_size), dtype)]


@dataclasses.dataclass(frozen=True)
class AttentionBuffers:
    """The buffers of one call, by the names of :func:`attention_parameters`."""

    problem: AttentionProblem
    query: Any
    key: Any
    value: Any
    result: Any
    mask: Any = None
    lengths: Any = None
    spans: Any = None
    table: Any = None
    sinks: Any = None

    @property
    def few_rows(self) -> int:
        """Most rows of a batch that share out the keys; 0 where none do."""
        heads = self.problem.heads_per_group
        return FEW_QUERIES * heads if heads <= _FEW_HEADS else 0

    @property
    def in_int8(self) -> bool:
        """Whether keys and values are stored so, with scales."""
        return self.problem.paged == INT8_ROWS

    @property
    def batches(self) -> Any:
        """Number of entries of a batch, or of sequences."""
        return self.table.shape[0] if self.problem.sequences else self.query.shape[0]

    @property
    def groups(self) -> Any:
        return self.key.shape[2 if self.problem.paged else 1]

    @property
    def keys(self) -> Any:
        """Number of keys of which there may be as many in each batch."""
        if not self.problem.paged:
            return self.key.shape[2]
        return (self.table.shape[1] if self.problem.sequences else self.key.shape[0]) * self._page

    @property
    def _page(self) -> Any:
        """Number of keys in a page."""
        return rows_in(self.key.shape[3], self.problem.head_size) if self.in_int8 else self.key.shape[3]

    def place_of(self, batch: Any, group: Any, first: Any) -> tuple[Any, ...]:
        """Indices in the tensors of keys and values at which the block of keys from ``first`` on begins.

        The last index counts keys. Where there are several pages, a block never crosses from one to the next."""
        if not self.problem.paged:
            return batch, group, first
        size = named("size", T.bind(T.max(self._page, T.int64(1))))
        number = first // size
        if self.problem.sequences:
            own = self.table[batch, T.min(number, self.table.shape[1] - 1)]
            number, batch = T.min(T.max(own, T.int64(0)), self.key.shape[0] - 1), T.int64(0)
        return (
            named("page", T.bind(number)),
            batch,
            group,
            named("start", T.bind(first % size)),
        )

    def element(self, tensor: Any, head: Sequence[Any], key: Any, column: Any) -> Any:
        """A number of the keys or values as it is stored; ``head`` and ``key``: as :meth:`place_of` gives them."""
        if not self.in_int8:
            return tensor[(*head, key, column)]
        return tensor[(*head, key * self._size_of(tensor) + column)]

    def scale(self, tensor: Any, head: Sequence[Any], key: Any) -> Any:
        """Scale of the row of a key or value in int8, as float32."""
        place = scale_at(tensor.shape[-1], self._size_of(tensor), key)
        return scale_from(tensor[(*head, place)], tensor[(*head, place + 1)])

    def load_scales(self, tensor: Any, head: Sequence[Any], first: Any, count: Any, lanes: int, scales: Any) -> None:
        """Emit the copy of ``count`` scales, from that of the key ``first`` on, into ``scales``."""
        place = named("place", T.bind(scale_at(tensor.shape[-1], self._size_of(tensor), first)))
        whole = named("whole", T.bind(count // lanes))
        with loop("vector", T.serial(whole)) as vector:
            pairs = tensor[(*head, T.ramp(place + vector * 2 * lanes, 1, 2 * lanes))]
            T.buffer_store(scales, scales_from(pairs, lanes), [T.ramp(vector * lanes, 1, lanes)])
        with loop("rest", T.serial(count % lanes)) as rest:
            T.buffer_store(scales, self.scale(tensor, head, first + whole * lanes + rest), [whole * lanes + rest])

    def _size_of(self, tensor: Any) -> int:
        return self.problem.head_size if tensor is self.key else self.problem.value_row

    def queries(self, batch: Any) -> Any:
        """Number of queries of a batch."""
        return self.spans[batch, 1] if self.problem.sequences else self.query.shape[2]

    def rows(self, batch: Any) -> Any:
        """Queries of a batch times query heads of one group."""
        return self.queries(batch) * self.problem.heads_per_group

    def most_rows(self) -> Any:
        """Emit the number of rows of the batch with the most of them."""
        if not self.problem.sequences:
            return self.rows(T.int64(0))
        most = named("most_rows", T.alloc_buffer((1,), "int64"))
        T.buffer_store(most, T.int64(0), [0])
        with loop("batch", T.serial(self.batches)) as batch:
            T.buffer_store(most, T.max(most[0], self.rows(batch)), [0])
        return most[0]

    def first_largest(self, head: Any) -> Any:
        """The largest score of a query before any key: that of the sink of its head, where there is one."""
        return T.max(self.sinks[head], T.float32(LOWEST)) if self.problem.has_sinks else T.float32(LOWEST)

    def first_total(self, head: Any, largest: Any) -> Any:
        """The sum of exponentials, relative to the largest score, before any key."""
        return exponential(self.sinks[head] - largest) if self.problem.has_sinks else T.float32(0)

    def place_of_query(self, batch: Any, head: Any, query: Any) -> tuple[Any, ...]:
        """Indices of a query in the tensor of queries, without the last axis."""
        if self.problem.sequences:
            return T.int64(0), head, self.spans[batch, 0] + query
        return batch, head, query

    def query_of(self, row: Any) -> Any:
        return named("position", T.bind(row // self.problem.heads_per_group))

    def head_of(self, group: Any, row: Any) -> Any:
        ratio = self.problem.heads_per_group
        return named("head", T.bind(group * ratio + row % ratio))

    def result_place(self, batch: Any, group: Any, row: Any) -> tuple[Any, ...]:
        """The indices of a row of a group in the result."""
        entry, head, query = self.place_of_query(batch, self.head_of(group, row), self.query_of(row))
        return (entry, query, head) if self.problem.query_major else (entry, head, query)

    def used_keys(self, batch: Any) -> Any:
        """Number of keys in use in a batch."""
        return T.min(self.lengths[batch], self.keys) if self.problem.has_lengths else self.keys

    def most_keys(self) -> Any:
        """Emit the number of keys in use in the batch with the most of them."""
        if not self.problem.has_lengths:
            return self.keys
        used = named("used", T.alloc_buffer((1,), "int64"))
        T.buffer_store(used, T.int64(0), [0])
        with loop("batch", T.serial(self.batches)) as batch:
            T.buffer_store(used, T.max(used[0], self.used_keys(batch)), [0])
        return used[0]

    def _behind_own(self, batch: Any, query: Any) -> Any:
        """The key after that which belongs to a query of a causal attention. May be negative, or not exist."""
        if self.problem.causal == "first":
            return query + 1
        keys = self.keys if self.problem.causal == "last" else self.lengths[batch]
        return query + 1 + keys - self.queries(batch)

    def frontier(self, batch: Any, query: Any) -> Any:
        """First key that the query must not see, whatever the mask says. May be negative."""
        if not self.problem.causal:
            return self.used_keys(batch)
        return T.min(self._behind_own(batch, query), self.used_keys(batch))

    def last_frontier(self, batch: Any) -> Any:
        """First key that no query sees."""
        return self.frontier(batch, self.queries(batch) - 1)

    def first_key(self, batch: Any, query: Any) -> Any:
        """First key of the window of a query; 0 without a window. At most the number of keys, whatever the lengths."""
        window = self.problem.window
        if not window:
            return T.int64(0)
        behind = T.min(T.max(self._behind_own(batch, query), T.int64(0)), self.keys + window)
        return T.max(behind - window, T.int64(0))

    def least_first_key(self) -> Any:
        """Emit the first key that the window of any query of any batch holds."""
        if not self.problem.has_lengths:
            return self.first_key(T.int64(0), T.int64(0))
        least = named("least", T.alloc_buffer((1,), "int64"))
        T.buffer_store(least, self.keys, [0])
        with loop("batch", T.serial(self.batches)) as batch:
            T.buffer_store(least, T.min(least[0], self.first_key(batch, T.int64(0))), [0])
        return least[0]

    def is_hidden(self, key: Any, frontier: Any, first: Any) -> Any:
        """Whether a key is at the frontier of a query or behind, or before its first one."""
        behind = key >= frontier
        return T.Or(behind, key < first) if self.problem.window else behind

    @property
    def caps(self) -> bool:
        """Whether scores are bounded before anything is added to them."""
        return self.problem.softcap > 0.0

    def capped(self, score: Any) -> Any:
        """The bounded score."""
        cap = T.float32(self.problem.softcap)
        return T.tanh(score / cap) * cap

    @property
    def adds(self) -> bool:
        """Whether numbers are added to scores."""
        return bool(self.problem.mask)

    @property
    def adds_alike(self) -> tuple[bool, bool]:
        """Whether all heads, and all queries, get the same numbers."""
        return self.problem.mask_broadcast[1:]

    def added_at(self, batch: Any, head: Any, query: Any, key: Any) -> Any:
        """The number that is added to a score, as float32: of a bool mask 0 or minus infinity."""
        one_batch, one_head, one_query = self.problem.mask_broadcast
        entry = self.mask[
            T.int64(0) if one_batch else batch,
            T.int64(0) if one_head else head,
            T.int64(0) if one_query else query,
            key,
        ]
        if self.problem.mask == "bool":
            return T.Select(entry, T.float32(0), T.float32(float("-inf")))
        return T.cast(entry, "float32")


def load_block(operands: AttentionBuffers, source: Any, place: tuple[Any, ...], count: Any, block: Any) -> None:
    """Emit the copy of ``count`` rows of ``source``, from ``place`` [..., row] on, into ``block`` [rows, D], whose
    remaining rows become zero."""
    *head, first = place
    rows, size = block.shape
    with loop("row", T.serial(count)) as row:
        scale = named("scale", T.bind(operands.scale(source, head, first + row))) if operands.in_int8 else None
        with loop("d", T.vectorized(size)) as d:
            number = T.cast(operands.element(source, head, first + row, d), "float32")
            T.buffer_store(block, number if scale is None else number * scale, [row, d])
    with loop("row", T.serial(rows - count)) as row, loop("d", T.vectorized(size)) as d:
        T.buffer_store(block, T.float32(0), [count + row, d])
