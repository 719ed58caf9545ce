"""How many tokens each expert gets in a call: what to expect where nothing was measured."""

from __future__ import annotations

from collections.abc import Sequence

from moec.targets.hls.moe.design import BlockShape


def even_loads(shape: BlockShape) -> list[int]:
    """As equal as can be; all experts are busy, and each has as much to compute."""
    each, rest = divmod(shape.tokens * shape.slots, shape.experts)
    return [each + (1 if expert < rest else 0) for expert in range(shape.experts)] + [shape.tokens] * shape.shared


def scaled_loads(shape: BlockShape, counted: Sequence[int], tokens: int) -> list[int]:
    """The loads of a full call whose tokens choose like the ``tokens`` that were ``counted``: shares rounded down, and
    what is left to those that lost most by it, so that no pair is missing."""
    shares = [int(count) * shape.tokens / tokens for count in counted]
    loads = [int(share) for share in shares]
    by_loss = sorted(range(len(shares)), key=lambda expert: loads[expert] - shares[expert])
    for expert in by_loss[: shape.tokens * shape.slots - sum(loads)]:
        loads[expert] += 1
    return loads + [shape.tokens] * shape.shared


def starving_loads(shape: BlockShape) -> list[int]:
    """About the slowest: as many experts as possible get one token, so that their weights are read for nearly nothing.

    The number of products does not depend on who computes them; where fewer experts are that idle, fewer weights are
    read or more is computed while they are.
    """
    pairs = shape.tokens * shape.slots
    if pairs <= shape.experts:
        return even_loads(shape)
    lonely = shape.experts - shape.slots
    each, rest = divmod(pairs - lonely, shape.slots)
    busy = [each + (1 if place < rest else 0) for place in range(shape.slots)]
    return [1] * lonely + busy + [shape.tokens] * shape.shared
