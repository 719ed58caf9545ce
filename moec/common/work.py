"""How much work one call of a kernel is: its operations, and the bytes it has to read and write.

Sizes are those of the call's own arguments. Operations are counted for kernels that are matrix products at heart, a
multiply-add as two; of experts, and of the keys that a query sees, those that the call really uses are counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from moec.common.dtypes import dtype_of
from moec.common.roofline import FLOAT32


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument of a kernel's call, whose memory may be gone after it. ``constant``: it is one of the weights."""

    array: np.ndarray
    constant: bool


@dataclasses.dataclass(frozen=True)
class Work:
    """``operations`` is None where they are not counted; ``arithmetic`` is the type of the numbers multiplied."""

    operations: int | None
    bytes_moved: int
    arithmetic: str = FLOAT32

    def __add__(self, other: Work) -> Work:
        known = self.operations is not None and other.operations is not None
        operations = self.operations + other.operations if known else None  # type: ignore[operator]
        return Work(operations, self.bytes_moved + other.bytes_moved, self.arithmetic)


def work_of(kernel: str, attributes: Mapping[str, Any], arguments: Sequence[Argument]) -> Work:
    """``kernel``: which of the target's kernels it is; ``attributes``: what the artifact says about it."""
    count = _COUNTS.get(kernel)
    return Work(None, _bytes(arguments)) if count is None else count(attributes, arguments)


_POWERS_OF_TWO = "float8_e8m0fnu"


def intensity(attributes: Mapping[str, Any], rows: int) -> float | None:
    """Operations per byte of memory of a product of ``rows`` rows and one matrix, where each of rows, matrix and
    results moves once. ``attributes``: what the artifact says about the kernel; None where that is no such product."""
    if not {"inner", "width", "dtype", "matrix_dtype", "out_dtype"} <= attributes.keys():
        return None
    inner, width = attributes["inner"], attributes["width"]
    weights = inner * width * (2 if attributes.get("gated") else 1)
    row_bytes = inner * dtype_of(attributes["dtype"]).itemsize + width * dtype_of(attributes["out_dtype"]).itemsize
    return 2 * rows * weights / (rows * row_bytes + weights * _matrix_bits(attributes) / 8)


def _matrix_bits(attributes: Mapping[str, Any]) -> float:
    """Bits of one number of the matrix, its share of a scale included."""
    stored = attributes.get("stored")
    if not stored:
        return 8 * dtype_of(attributes["matrix_dtype"]).itemsize
    scale_bits = 8 if stored["scale"] == _POWERS_OF_TWO else 8 * dtype_of(stored["scale"]).itemsize
    return (8 if stored["element"] == "int8" else 4) + scale_bits / (stored["group"] or attributes["inner"])


def _bytes(arguments: Sequence[Argument]) -> int:
    return sum(argument.array.nbytes for argument in arguments)


def _gemm(attributes: Mapping[str, Any], arguments: Sequence[Argument]) -> Work:
    rows = arguments[-1].array.shape[0]
    operations = 2 * rows * attributes["inner"] * attributes["width"]
    return Work(operations, _bytes(arguments), attributes["arithmetic"])


def _grouped_gemm(attributes: Mapping[str, Any], arguments: Sequence[Argument]) -> Work:
    """Weights of experts without rows are not read."""
    rows = _rows_by_expert(arguments)
    operations, bits = 0, 0.0
    for expert in np.flatnonzero(rows):
        weights = _weights_of(attributes, int(expert))
        operations += 2 * int(rows[expert]) * weights
        form = attributes["format_of"][expert] if attributes["format_of"] else 0
        bits += weights * attributes["weight_bits"][form]
    moved = _bytes([argument for argument in arguments if not argument.constant]) + int(bits / 8)
    return Work(operations, moved, attributes["arithmetic"])


def _weights_of(attributes: Mapping[str, Any], expert: int) -> int:
    """Of one expert. Where experts differ in size, their hidden units are the outputs of the first product and the
    inputs of the second."""
    inner, width, sizes = attributes["inner"], attributes["width"], attributes["hidden_sizes"]
    if sizes and attributes["rows_out"] == "sorted by expert":
        width = sizes[expert]
    elif sizes:
        inner = sizes[expert]
    return inner * width * (2 if attributes["gated"] else 1)


def _rows_by_expert(arguments: Sequence[Argument]) -> np.ndarray:
    """From the list of blocks (expert, first row, rows) and their number, which follows it."""
    position = next(i for i, one in enumerate(arguments) if one.array.dtype == np.int32 and one.array.shape[1:] == (3,))
    blocks = arguments[position].array[: int(arguments[position + 1].array[0])]
    return np.bincount(blocks[:, 0], weights=blocks[:, 2]) if len(blocks) else np.zeros(0)


def _batched_matmul(_attributes: Mapping[str, Any], arguments: Sequence[Argument]) -> Work:
    left, result = arguments[0].array, arguments[-1].array
    return Work(2 * result.size * left.shape[-1], _bytes(arguments), str(left.dtype))


def _attention(attributes: Mapping[str, Any], arguments: Sequence[Argument]) -> Work:
    """Keys in use are read once for each head of keys, whoever sees them."""
    query, key, value = (argument.array for argument in arguments[:3])
    batch, heads, queries, head_size = query.shape
    keys, value_size = key.shape[2], value.shape[3]
    used = np.full(batch, keys)
    if attributes["has_lengths"]:
        used = arguments[-2].array.astype(np.int64).reshape(-1)
    seen = sum(_keys_seen(attributes["causal"], queries, keys, int(length)) for length in used)
    operations = 2 * heads * seen * (head_size + value_size)
    unused = 1 - used.mean() / keys if keys else 0.0
    moved = _bytes(arguments) - int(unused * (key.nbytes + value.nbytes))
    return Work(operations, moved, str(query.dtype))


def _keys_seen(causal: str, queries: int, keys: int, used: int) -> int:
    """Pairs of a query and a key that it sees."""
    if not causal:
        return queries * used
    offset = {"first": 0, "last": keys - queries, "lengths": used - queries}[causal]
    return int(np.clip(np.arange(1, queries + 1) + offset, 0, used).sum())


_COUNTS: dict[str, Callable[[Mapping[str, Any], Sequence[Argument]], Work]] = {
    "gemm": _gemm,
    "grouped_gemm": _grouped_gemm,
    "grouped_gemm_gated": _grouped_gemm,
    "batched_matmul": _batched_matmul,
    "attention": _attention,
}
