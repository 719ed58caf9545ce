"""Values of a model between ranks: their sizes, int64, and one message with the bytes of all, uint8.

Types and numbers of axes are known from the artifact. What is no array travels as JSON, never pickled: what another
process sends must not run code here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moec.common.dtypes import dtype_of
from moec.common.specs import TensorSpec
from moec.distributed.group import RankGroup
from moec.distributed.transport import swap, swap_counts

Values = Mapping[str, Any]


def gathered_values(group: RankGroup, specs: Sequence[TensorSpec], own: Values) -> list[dict[str, np.ndarray]]:
    """Collect the values of all ranks, in their order, on every rank. Shapes may differ between ranks."""
    sizes, message = packed(specs, own)
    with group.collective("gathering of results"):
        theirs = [part.view(np.int64) for part in _from_all(group, sizes.view(np.uint8), [sizes.nbytes] * group.size)]
        messages = _from_all(group, message, [bytes_in(specs, part) for part in theirs])
    return [unpacked(specs, *parts) for parts in zip(theirs, messages, strict=True)]


def gathered_data(group: RankGroup, own: Any, name: str) -> list[Any]:
    """Collect plain data of all ranks, in their order, on every rank, as JSON. ``name``: of the collective."""
    message = np.frombuffer(bytearray(json.dumps(own), "ascii"), np.uint8)
    with group.collective(name):
        counts = swap_counts(group, np.full(group.size, len(message), np.int64))
        messages = _from_all(group, message, counts)
    return [json.loads(part.tobytes()) for part in messages]


def _from_all(group: RankGroup, own: np.ndarray, counts: Sequence[int] | np.ndarray) -> tuple[np.ndarray, ...]:
    return swap(group, [own] * group.size, counts).wait()


def sizes_in(specs: Sequence[TensorSpec]) -> int:
    return sum(len(spec.shape) for spec in specs)


def _shapes(specs: Sequence[TensorSpec], sizes: np.ndarray) -> list[tuple[int, ...]]:
    ends = np.cumsum([len(spec.shape) for spec in specs])
    return [tuple(map(int, part)) for part in np.split(sizes, ends[:-1])]


def bytes_in(specs: Sequence[TensorSpec], sizes: np.ndarray) -> int:
    shapes = _shapes(specs, sizes)
    return sum(
        int(np.prod(shape, dtype=np.int64)) * dtype_of(spec.dtype).itemsize
        for spec, shape in zip(specs, shapes, strict=True)
    )


def packed(specs: Sequence[TensorSpec], values: Values) -> tuple[np.ndarray, np.ndarray]:
    """Write values as their sizes, int64, one after the other, and the bytes of all."""
    arrays = [np.asarray(values[spec.name], order="C") for spec in specs]  # not ascontiguousarray: scalars have no axis
    sizes = np.array([size for array in arrays for size in array.shape], np.int64)
    return sizes, np.concatenate([array.reshape(-1).view(np.uint8) for array in arrays])


def unpacked(specs: Sequence[TensorSpec], sizes: np.ndarray, message: np.ndarray) -> dict[str, np.ndarray]:
    values, start = {}, 0
    for spec, shape in zip(specs, _shapes(specs, sizes), strict=True):
        dtype = dtype_of(spec.dtype)
        end = start + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        values[spec.name] = message[start:end].view(dtype).reshape(shape)
        start = end
    return values
