"""A number that a format has once for all layers."""

from __future__ import annotations

import collections
from collections.abc import Mapping

from moec.common.errors import UnsupportedError


def one_number(where: str, what: str, by_layer: Mapping[str, int]) -> int:
    """The number that all layers share. Raises UnsupportedError, naming layers that have others, and the options that
    make them equal."""
    numbers = collections.Counter(by_layer.values())
    (usual, _), *others = numbers.most_common()
    if others:
        odd = [f"{name} {number}" for name, number in by_layer.items() if number != usual]
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise UnsupportedError(
            f"{where}: has one number of {what} for all layers, but after the passes it would be {usual}, and of "
            f"{', '.join(odd[:3])}{more}; change all layers alike: prune-experts and merge-experts without layers and "
            "with per_layer=uniform, no skip-experts"
        )
    return usual
