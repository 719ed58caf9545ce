"""Batches of matrices: numpy's broadcasting of all axes but the last two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import relax

from moec.targets.tvm.heavy import LoweringContext
from moec.targets.tvm.nodes import product, reshape, static_size


def as_batches(lowering: LoweringContext, tensor: relax.Expr, batch: Sequence[Any]) -> relax.Expr:
    """The tensor [..., X, Y] as [B|1, X, Y] for the broadcast batch sizes; copies only where some, but not all of the
    batch axes have to be repeated, or which ones is seen when the program runs."""
    shape = list(tensor.ty.shape)
    own, matrix = shape[:-2], shape[-2:]
    if all(static_size(size) == 1 for size in own):
        return reshape(lowering, tensor, [1, *matrix])
    return reshape(lowering, lowering.broadcast_to(tensor, [*batch, *matrix]), [product(batch), *matrix])
