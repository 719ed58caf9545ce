"""Whether the float form of a block, which integers are made from, is what the graph computes on calibration data.

A form is found by the graph's structure and by probes of its parts; whatever is read wrongly (an angle, an epsilon, a
mask, which half is the gate) becomes integers that nothing else holds against the model. So some rows of the data go
through both, the graph's products unrounded. What is added to each token must be the same but for rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from moec.errors import UnsupportedError

Array = np.ndarray[Any, Any]
DType = np.dtype[Any] | type[np.float32]

MOST_TOKENS = 256
"""That are compared, or two sequences, where these are longer."""
BOUND = 1e-4
"""Of a difference, as a part of the most that is added to a channel of the token. Float32 sums in another order differ
by 2e-6 in all examples."""
_ROUNDINGS = 4
"""Of a result, in its type: what is added to a large token is not righter than that."""


@dataclasses.dataclass(frozen=True)
class Compared:
    """Tokens [..., d]: what the float form makes of them (``found``), what the graph does (``expected``), and what of
    that it ``added`` to them. Those that are ``undecided``, bool [...], may differ. ``unseen``: what these tokens say
    nothing about."""

    found: Array
    expected: Array
    added: Array
    undecided: Array
    unseen: tuple[str, ...] = ()

    @staticmethod
    def whole(found: Array, expected: Array) -> Compared:
        """Where all of the result is made by what is compared."""
        return Compared(found, expected, expected, np.zeros(expected.shape[:-1], bool))


@dataclasses.dataclass(frozen=True)
class Agreement:
    """``largest``: difference, as a part of the most that ``node`` adds to a channel of the token; up to ``bound`` is
    rounding. ``tokens``: that were compared."""

    node: str
    largest: float
    bound: float
    tokens: int
    unseen: tuple[str, ...] = ()


def agreement(node: str, compared: Compared, dtype: DType = np.float32, computed_in: DType = np.float32) -> Agreement:
    """``dtype``: of the graph's result; ``computed_in``: of what is added.

    Raises UnsupportedError, naming the node, where the float form computes something else than the graph.
    """
    if not np.isfinite(compared.expected).all():
        raise UnsupportedError(
            f"{node}: the graph makes numbers of calibration data that are not finite; expected data in its range"
        )
    of_added = BOUND + roundings(computed_in)
    allowed = of_added * _largest(compared.added) + roundings(dtype) * _largest(compared.expected)
    errors = np.abs(compared.found - compared.expected)
    shares = errors.max(axis=-1, initial=0.0) / np.maximum(allowed, np.finfo(np.float32).tiny)
    shares[compared.undecided] = 0
    largest = float(shares.max(initial=0.0))
    if not largest <= 1:
        token = np.unravel_index(int(np.argmax(np.where(np.isnan(shares), np.inf, shares))), shares.shape)
        channel = int(np.argmax(errors[token]))
        found, expected = compared.found[token][channel], compared.expected[token][channel]
        raise UnsupportedError(
            f"{node}: the float form that integers are made from does not compute what the graph does: of channel "
            f"{channel} of calibration token {', '.join(map(str, token))} it makes {found:.6g} and the graph "
            f"{expected:.6g}; expected a difference of up to {allowed[token]:.2g}. Calibrate with whole sequences, "
            "without pads; where they are, this is a fault of moec"
        )
    return Agreement(node, largest * BOUND, BOUND, compared.undecided.size, compared.unseen)


def roundings(dtype: DType) -> float:
    """By what part a number of this type may be off that a few operations made."""
    return _ROUNDINGS * float(ml_dtypes.finfo(dtype).eps)


def sequences_compared(tokens: int) -> int:
    """How many of so many tokens."""
    return max(2, MOST_TOKENS // max(1, tokens))


def unseen(agreements: Sequence[Agreement]) -> str | None:
    """What no data was compared on, in one line; None where that is nothing."""
    nodes: dict[str, list[str]] = {}
    for one in agreements:
        for what in one.unseen:
            nodes.setdefault(what, []).append(one.node)
    if not nodes:
        return None
    listed = (f"{what} ({of[0]}{f' and {len(of) - 1} more' if of[1:] else ''})" for what, of in nodes.items())
    return f"the calibration data, on which blocks were compared with the graph, does not show: {'; '.join(listed)}"


def _largest(rows: Array) -> Array:
    return np.abs(rows).max(axis=-1, initial=0.0)
