"""Operators that move the elements of their first input and compute nothing with them."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Movement:
    """Side effects of a movement: elements may be absent from an output (``drops``), occur several times (``repeats``),
    come in another order (``reorders``) or in another type (``casts``)."""

    drops: bool = False
    repeats: bool = False
    reorders: bool = False
    casts: bool = False


MOVEMENTS = {
    "Cast": Movement(casts=True),
    "Compress": Movement(drops=True),
    "Expand": Movement(repeats=True),
    "Flatten": Movement(),
    "Gather": Movement(drops=True, repeats=True, reorders=True),
    "GatherElements": Movement(drops=True, repeats=True, reorders=True),
    "GatherND": Movement(drops=True, repeats=True, reorders=True),
    "Identity": Movement(),
    "Reshape": Movement(),
    "Slice": Movement(drops=True, reorders=True),  # backwards, with a negative step
    "Split": Movement(drops=True),
    "Squeeze": Movement(),
    "Tile": Movement(repeats=True),
    "Transpose": Movement(reorders=True),
    "Unsqueeze": Movement(),
}


def moving(*, drops: bool = True, repeats: bool = True, reorders: bool = True, casts: bool = True) -> frozenset[str]:
    """The ONNX operators that move elements with none but the allowed side effects."""
    allowed = Movement(drops, repeats, reorders, casts)
    kinds = [field.name for field in dataclasses.fields(Movement)]
    return frozenset(
        operator
        for operator, effects in MOVEMENTS.items()
        if all(getattr(allowed, kind) or not getattr(effects, kind) for kind in kinds)
    )
