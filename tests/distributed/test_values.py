"""Values of all ranks on every rank: of other shapes on each, of types that torch lacks, and plain data."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from moec.common.specs import TensorSpec
from moec.distributed.values import bytes_in, gathered_data, gathered_values, packed, sizes_in, unpacked
from tests.distributed.gloo import group_of, start_ranks

SPECS = [
    TensorSpec("flags", "bool", ("n",)),
    TensorSpec("total", "float32", ()),
    TensorSpec("rows", "bfloat16", ("n", 3)),
    TensorSpec("ids", "int64", ("n", "k")),
]


def values_of(rank: int) -> dict[str, np.ndarray]:
    """Values of three sizes; rank 0 has no row."""
    rows = np.arange(3 * rank, dtype=np.float32).reshape(rank, 3)
    return {
        "flags": np.arange(rank) % 2 == 0,
        "total": np.array(rank + 0.5, np.float32),
        "rows": rows.astype(ml_dtypes.bfloat16),
        "ids": np.arange(2 * rank).reshape(rank, 2)[:, ::-1],
    }


def same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return list(actual) == list(expected) and all(
        (own.dtype, own.shape, own.tobytes()) == (other.dtype, other.shape, other.tobytes())
        for own, other in zip(actual.values(), expected.values(), strict=True)
    )


def test_packed_values_are_read_back() -> None:
    sizes, message = packed(SPECS, values_of(3))
    assert (len(sizes), len(message)) == (sizes_in(SPECS), bytes_in(SPECS, sizes)) == (5, 3 + 4 + 18 + 48)
    assert same(unpacked(SPECS, sizes, message), values_of(3))
    assert not same(unpacked(SPECS, sizes, message[::-1].copy()), values_of(3))


def gathered(rank: int, size: int) -> tuple[list[dict[str, np.ndarray]], list[Any]]:
    data = {"rank": rank, "text": "\ud800\u00fc" * rank, "share": 0.1 * rank}
    with group_of(size) as group:
        return gathered_values(group, SPECS, values_of(rank)), gathered_data(group, data, "test")


def test_all_ranks_get_the_values_of_all() -> None:
    for values, data in start_ranks(3, gathered, 3).results():
        assert all(same(own, values_of(rank)) for rank, own in enumerate(values)) and len(values) == 3
        assert data == [{"rank": rank, "text": "\ud800\u00fc" * rank, "share": 0.1 * rank} for rank in range(3)]
