"""Batches of matrices: numpy's broadcasting of all axes but the last two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import relax

from moec.targets.tvm.heavy import LoweringContext
from moec.targets.tvm.nodes import product, reshape, static_size


def broadcast_shapes(left: Sequence[Any], right: Sequence[Any]) -> list[Any]:
    """Numpy's broadcasting; sizes that are not statically 1 are taken to be equal, as ONNX demands."""
    rank = max(len(left), len(right))
    padded = [[1] * (rank - len(shape)) + list(shape) for shape in (left, right)]
    return [b if static_size(a) == 1 else a for a, b in zip(*padded, strict=True)]


def as_batches(lowering: LoweringContext, tensor: relax.Expr, batch: Sequence[Any]) -> relax.Expr:
    """The tensor [..., X, Y] as [B|1, X, Y] for the broadcast batch sizes; copies only where some, but not all of the
    batch axes have to be repeated."""
    shape = list(tensor.ty.shape)
    own, matrix = shape[:-2], shape[-2:]
    if all(static_size(size) == 1 for size in own):
        return reshape(lowering, tensor, [1, *matrix])
    padded = [1] * (len(batch) - len(own)) + own
    if any(static_size(a) == 1 and static_size(b) != 1 for a, b in zip(padded, batch, strict=True)):
        tensor = lowering.emit(relax.op.broadcast_to(tensor, [*batch, *matrix]))
    return reshape(lowering, tensor, [product(batch), *matrix])
