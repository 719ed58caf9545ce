"""Tensors in pages, and the problem of writing to them: what converters see of a state that a program holds in place.

:mod:`moec.targets.tvm.lowering.held_states` describes the layout of pages and finds the states.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import onnx_ir as ir
import tvm_ffi
from tvm import relax, te, tirx

from moec.targets.tvm.kernels.int8_rows import INT8_ROWS, rows_in, scale_at, scale_from
from moec.targets.tvm.sizes.shapes import static_size


@dataclasses.dataclass(frozen=True)
class AppendProblem:
    """Static part of writing to a state: the sizes of the axes ``before`` and ``after`` the one along which it grows
    (None where dynamic), and element types. ``new``: type of the elements written, a float type, and float32 where
    ``stored`` is int8. ``starts``: type of the places to write at, one per entry of the first axis; "" to append.
    ``by_entry``: there is a place for each entry along the growing axis instead."""

    before: tuple[int | None, ...]
    after: tuple[int | None, ...]
    new: str
    stored: str
    starts: str = ""
    by_entry: bool = False

    @property
    def row(self) -> int:
        """Numbers of a row that is stored in int8."""
        (size,) = self.after
        assert size is not None, "rows of int8 have a fixed size"
        return size

    @property
    def why_not_rows(self) -> str | None:
        """The reason why what is written cannot be rounded to rows of int8; None if it can."""
        if self.new != "float32" or len(self.after) != 1 or self.after[0] is None:
            return f"{self.new} with {len(self.after)} axes in int8; the kernel rounds float32 rows of a fixed size"
        return None


class Places(NamedTuple):
    """Places to write at in a state: ``starts``, integers [first axis], has one for each entry of the first axis.

    The state is of ``length`` afterwards; nothing is written outside of that. ``by_entry``: there is a place for each
    entry along the growing axis instead, and nothing is written outside of the pages."""

    starts: relax.Expr
    length: Any
    by_entry: bool = False


class BatchTensors(NamedTuple):
    """Parameters of a batched program (:mod:`moec.ir.batches`) beside the inputs of its graph."""

    lengths: relax.Var
    spans: relax.Var
    table: relax.Var
    places: relax.Var
    window_table: relax.Var
    window_places: relax.Var
    rows: relax.Var
    entries_before: relax.Var
    entries_after: relax.Var

    @staticmethod
    def of_sizes(count: Any, pages: Any, tokens: Any, rows: Any) -> BatchTensors:
        """Parameters for ``count`` sequences of at most so many ``pages``, with so many new ``tokens``, of which
        ``rows`` are computed to the end."""
        shapes = BatchTensors(
            lengths=[count],
            spans=[count, 2],
            table=[count, pages],
            places=[tokens],
            window_table=[count, pages],
            window_places=[tokens],
            rows=[rows],
            entries_before=[count],
            entries_after=[count],
        )
        return BatchTensors(
            **{name: relax.Var(name, relax.TensorType(shape, "int64")) for name, shape in shapes._asdict().items()}
        )

    def of(self, tensor: PagedTensor) -> BatchTensors:
        """The tensors with the table and places of the pages in which a state lies."""
        if tensor.of_sequences:
            return self._replace(places=self.entries_after)
        if not tensor.has_window:
            return self
        return self._replace(table=self.window_table, places=self.window_places)


@dataclasses.dataclass(frozen=True)
class PagedTensor:
    """A tensor [*before, ``length``, *after] of ``dtype`` that lies in ``pages``.

    ``row``: the size of its last axis. ``continued``: the one value that extends the tensor, until it is written.
    ``has_window``: whether all readers see the last entries alone. ``kept``: the number of its last entries that lie
    in pages, where those before a window do not; None where all have a place. ``of_sequences``: whether it is a state
    of a batch that each run replaces, with an entry for each sequence: these lie in pages of one entry, at the batch's
    ``entries_before``."""

    pages: relax.Expr
    axis: int
    length: Any
    dtype: str
    row: Any
    continued: ir.Value | None = None
    has_window: bool = False
    kept: Any = None
    of_sequences: bool = False

    @property
    def in_pages(self) -> Any:
        """Number of entries that lie in pages."""
        return self.length if self.kept is None else self.kept

    @property
    def ty(self) -> relax.TensorType:
        """Type of the tensor that the pages hold, as if it were in ordinary memory."""
        sizes = list(self.pages.ty.shape)[1:]
        if self.stored == INT8_ROWS:
            sizes.append(self.row)
        sizes[self.axis] = self.length
        return relax.TensorType(sizes, self.dtype)

    @property
    def stored(self) -> str:
        return str(self.pages.ty.dtype)

    def lies_as(self, other: PagedTensor) -> bool:
        """Whether ``other`` has the same layout in its pages: element type, growing axis, length and entries there."""
        same = self.stored == other.stored and self.axis == other.axis and self.has_window == other.has_window
        numbers = (self.length, other.length), (self.in_pages, other.in_pages)
        return same and all(tvm_ffi.structural_equal(*pair) for pair in numbers)

    def gathered(self) -> Callable[[te.Tensor], te.Tensor]:
        """TE function that copies the pages to an ordinary tensor, for operators that cannot read pages."""
        shape, page = list(self.ty.shape), self.pages.ty.shape[self.axis + 1]
        if self.stored == INT8_ROWS:
            return self._gathered_rows(shape, page)

        def build(pages: te.Tensor) -> te.Tensor:
            def element(*at: tirx.Expr) -> tirx.Expr:
                number = at[self.axis]
                inside = tirx.floormod(number, page)
                place = pages(tirx.floordiv(number, page), *at[: self.axis], inside, *at[self.axis + 1 :])
                return place.astype(self.dtype)

            return te.compute(shape, element, name="gathered")

        return build

    def gathered_entries(self) -> Callable[[te.Tensor, te.Tensor], te.Tensor]:
        """TE function that copies the states of sequences from their entries to an ordinary tensor. No number in memory
        makes it read outside of the pages."""

        def build(pages: te.Tensor, entries: te.Tensor) -> te.Tensor:
            def element(*at: tirx.Expr) -> tirx.Expr:
                last, zero = pages.shape[0] - 1, tirx.IntImm("int64", 0)
                return pages(tirx.max(tirx.min(entries(at[0]), last), zero), 0, *at[1:])

            return te.compute(list(self.ty.shape), element, name="entries")

        return build

    def _gathered_rows(self, shape: list[Any], page: Any) -> Callable[[te.Tensor], te.Tensor]:
        rows = rows_in(page, self.row)

        def build(pages: te.Tensor) -> te.Tensor:
            def element(*at: tirx.Expr) -> tirx.Expr:
                *head, number, column = at
                inside = tirx.floormod(number, rows)
                first = (tirx.floordiv(number, rows), *head)
                scale = scale_at(page, self.row, inside)
                code = pages(*first, inside * self.row + column)
                return code.astype(self.dtype) * scale_from(pages(*first, scale), pages(*first, scale + 1))

            return te.compute(shape, element, name="gathered")

        return build


def append_problem(state: PagedTensor, new: str, places: Places | None = None) -> AppendProblem:
    sizes, starts = (
        [static_size(size) for size in state.ty.shape],
        "" if places is None else str(places.starts.ty.dtype),
    )
    before, after = tuple(sizes[: state.axis]), tuple(sizes[state.axis + 1 :])
    return AppendProblem(before, after, new, state.stored, starts, places is not None and places.by_entry)
