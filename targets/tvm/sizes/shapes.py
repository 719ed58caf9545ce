"""Shapes of tensors: their number of elements, sizes that are numbers, and the same elements under another shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import relax, tirx


def product(sizes: Sequence[Any]) -> Any:
    """The number of elements of a shape, as an int64 expression."""
    return math.prod(sizes, start=tirx.IntImm("int64", 1))


def static_size(size: Any) -> int | None:
    """The size as a number, None if it is dynamic."""
    if isinstance(size, tirx.IntImm):
        return int(size.value)
    return size if isinstance(size, int) else None


def reshaped(tensor: relax.Expr, shape: Sequence[Any]) -> relax.Expr:
    """The same elements under another shape; a new tensor if that has a size of 0.

    Relax would read the 0 as ONNX does: as a copy of the tensor's own size on that axis."""
    if any(static_size(size) == 0 for size in shape):
        return relax.op.zeros(list(shape), str(tensor.ty.dtype))
    return relax.op.reshape(tensor, list(shape))
