"""Tokens that each expert gets in a call: even, as calibration counted them, or about the slowest."""

from __future__ import annotations

from collections.abc import Sequence

from moec.targets.hls.design.experts import BlockShape


def even_loads(shape: BlockShape) -> list[int]:
    """Loads as equal as possible: all experts are busy."""
    each, rest = divmod(shape.tokens * shape.slots, shape.experts)
    return [each + (1 if expert < rest else 0) for expert in range(shape.experts)] + [shape.tokens] * shape.shared


def scaled_loads(shape: BlockShape, counted: Sequence[int], tokens: int) -> list[int]:
    """The loads of a full call whose tokens choose experts as ``tokens`` counted ones did (``counted`` by expert).
    Shares are rounded down, and the remaining pairs go to the experts that lost most by rounding."""
    shares = [int(count) * shape.tokens / tokens for count in counted]
    loads = [int(share) for share in shares]
    by_loss = sorted(range(len(shares)), key=lambda expert: loads[expert] - shares[expert])
    for expert in by_loss[: shape.tokens * shape.slots - sum(loads)]:
        loads[expert] += 1
    return loads + [shape.tokens] * shape.shared


def starving_loads(shape: BlockShape) -> list[int]:
    """About the slowest loads: as many experts as possible get a single token, so their weights are read for little
    work.

    The number of products does not depend on which experts compute them. With fewer such experts, fewer weights are
    read, or more is computed while they are read.
    """
    pairs = shape.tokens * shape.slots
    if pairs <= shape.experts:
        return even_loads(shape)
    lonely = shape.experts - shape.slots
    each, rest = divmod(pairs - lonely, shape.slots)
    busy = [each + (1 if place < rest else 0) for place in range(shape.slots)]
    return [1] * lonely + busy + [shape.tokens] * shape.shared
