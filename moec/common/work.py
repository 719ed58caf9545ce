"""Work of one call of a kernel: its operations, and the bytes it has to read and write.

Sizes are those of the call's own arguments. Operations are counted for kernels that are essentially matrix products, a
multiply-add as two. Only experts that the call uses, and keys that a query sees, are counted. A model in the artifact,
stored with the kernel, defines the count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from moec.common.errors import ArtifactError
from moec.common.records import read_variant
from moec.common.roofline import FLOAT32
from moec.common.specs import ROW_SCALE_BYTES


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument of a kernel's call, whose memory may be gone afterwards. ``constant``: whether it is a weight."""

    array: np.ndarray
    constant: bool


@dataclasses.dataclass(frozen=True)
class Work:
    """Operations and bytes of a call. ``operations`` is None where they are not counted; ``arithmetic`` is the type of
    the factors."""

    operations: int | None
    bytes_moved: int
    arithmetic: str = FLOAT32

    def __add__(self, other: Work) -> Work:
        is_counted = self.operations is not None and other.operations is not None
        operations = self.operations + other.operations if is_counted else None  # type: ignore[operator]
        return Work(operations, self.bytes_moved + other.bytes_moved, self.arithmetic)


@dataclasses.dataclass(frozen=True)
class MatmulWork:
    """A product of rows with one constant matrix [inner, width]; the result is the last argument."""

    inner: int
    width: int
    arithmetic: str

    def of(self, arguments: Sequence[Argument]) -> Work:
        rows = arguments[-1].array.shape[0]
        return Work(2 * rows * self.inner * self.width, _bytes(arguments), self.arithmetic)


@dataclasses.dataclass(frozen=True)
class GroupedWork:
    """A product of rows with the matrices of their experts; those of experts without rows are not read.

    An expert has ``matrices`` (gate and up, or one) of [inner, width]; where experts differ in size, ``sizes`` are
    those of the ``sized`` axis. ``weight_bits``: bits of a weight, scales included, by format; ``format_of``: the
    format of each expert (empty: all have the first). The arguments contain the list of blocks (expert, first row,
    rows), and their number.
    """

    inner: int
    width: int
    matrices: int
    arithmetic: str
    weight_bits: tuple[float, ...]
    format_of: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    sized: Literal["inner", "width"] = "width"

    def of(self, arguments: Sequence[Argument]) -> Work:
        others = _bytes([argument for argument in arguments if not argument.constant])
        return self.of_rows(_rows_by_expert(arguments)) + Work(0, others)

    def of_rows(self, rows: np.ndarray) -> Work:
        """Compute the operations for so many ``rows`` of each expert [E], and the bytes of the weights that they
        read."""
        operations, bits = 0, 0.0
        for expert in map(int, np.flatnonzero(rows)):
            weights = self._weights(expert)
            operations += 2 * int(rows[expert]) * weights
            bits += weights * self.weight_bits[self.format_of[expert] if self.format_of else 0]
        return Work(operations, int(bits / 8), self.arithmetic)

    def _weights(self, expert: int) -> int:
        inner, width = self.inner, self.width
        if self.sizes and self.sized == "width":
            width = self.sizes[expert]
        elif self.sizes:
            inner = self.sizes[expert]
        return self.matrices * inner * width


def _rows_by_expert(arguments: Sequence[Argument]) -> np.ndarray:
    position = next(
        i
        for i, argument in enumerate(arguments)
        if argument.array.dtype == np.int32 and argument.array.shape[1:] == (3,)
    )
    blocks = arguments[position].array[: int(arguments[position + 1].array[0])]
    return np.bincount(blocks[:, 0], weights=blocks[:, 2]) if len(blocks) else np.zeros(0)


@dataclasses.dataclass(frozen=True)
class BatchedWork:
    """Products of batches of matrices: the left factors are the first argument, the results the last."""

    def of(self, arguments: Sequence[Argument]) -> Work:
        left, result = arguments[0].array, arguments[-1].array
        return Work(2 * result.size * left.shape[-1], _bytes(arguments), str(left.dtype))


@dataclasses.dataclass(frozen=True)
class AttentionWork:
    """Attention: query, key and value come first, and lengths, if there are any, before the result.

    Keys in use are read once for each head of keys, whichever queries see them. ``causal`` is that of the attention's
    problem; ``paged``: keys and values are [pages, batch, heads, page, size]. ``values_in_keys``: values are the first
    columns of keys, which are read with them.
    """

    causal: Literal["", "first", "last", "lengths"]
    has_lengths: bool
    paged: bool = False
    values_in_keys: bool = False

    def of(self, arguments: Sequence[Argument]) -> Work:
        query, key, value = (argument.array for argument in arguments[:3])
        batch, heads, queries, head_size = query.shape
        keys, value_size = self._keys(key, head_size), arguments[-1].array.shape[-1]
        used = arguments[-2].array.astype(np.int64).reshape(-1) if self.has_lengths else np.full(batch, keys)
        seen = sum(self._keys_seen(queries, keys, int(length)) for length in used)
        unused = 1 - used.mean() / keys if keys else 0.0
        again = value.nbytes if self.values_in_keys else 0
        moved = _bytes(arguments) - again - int(unused * (key.nbytes + value.nbytes - again))
        return Work(2 * heads * seen * (head_size + value_size), moved, str(query.dtype))

    def _keys(self, key: np.ndarray, size: int) -> int:
        """Count the keys that have memory."""
        if self.paged and key.ndim == 4:  # int8: [pages, batch, heads, bytes of a page]
            return key.shape[0] * (key.shape[3] // (size + ROW_SCALE_BYTES))
        return key.shape[-2] * (key.shape[0] if self.paged else 1)

    def _keys_seen(self, queries: int, keys: int, used: int) -> int:
        """Count the pairs of a query and a key that it sees."""
        if not self.causal:
            return queries * used
        offset = {"first": 0, "last": keys - queries, "lengths": used - queries}[self.causal]
        return int(np.clip(np.arange(1, queries + 1) + offset, 0, used).sum())


@dataclasses.dataclass(frozen=True)
class SizedWork:
    """The work of a call by the kernel's dynamic sizes alone, before any call: expressions of these sizes, in C.

    ``operations`` counts a multiply-add as two; ``arithmetic`` is the type of the factors. ``moved``: by the name of a
    tensor, the most of its numbers that are read or written; each other tensor moves as a whole. ``experts``: those of
    the layer, among which tokens choose; 0 for other kernels than products of experts. ``block_rows``: the multiple to
    which the rows of an expert are computed; 0 where there are no blocks.
    """

    operations: str = "0"
    arithmetic: str = FLOAT32
    moved: Mapping[str, str] = dataclasses.field(default_factory=dict)
    experts: int = 0
    block_rows: int = 0


WorkModel = MatmulWork | GroupedWork | BatchedWork | AttentionWork
_MODELS: dict[str, type[WorkModel]] = {
    "matmul": MatmulWork,
    "grouped": GroupedWork,
    "batched": BatchedWork,
    "attention": AttentionWork,
}


def work_of(model: WorkModel | None, arguments: Sequence[Argument]) -> Work:
    """Compute the work of a call; only its bytes where there is no model."""
    return Work(None, _bytes(arguments)) if model is None else model.of(arguments)


def work_as_data(model: WorkModel | None) -> dict[str, Any] | None:
    """Convert to plain data, which :func:`parse_work` reads."""
    if model is None:
        return None
    kind = next(name for name, known_type in _MODELS.items() if type(model) is known_type)
    return {"counts": kind, **dataclasses.asdict(model)}


def parse_work(data: Mapping[str, Any] | None, where: str) -> WorkModel | None:
    """Parse the model in an artifact; ``where`` names the kernel. Raises ArtifactError for one that moec did not
    write."""
    if data is None:
        return None
    return read_variant(_MODELS, "counts", data, f"{where}: work", "compile the model again", ArtifactError)


def _bytes(arguments: Sequence[Argument]) -> int:
    return sum(argument.array.nbytes for argument in arguments)
