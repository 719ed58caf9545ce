"""The agreement of a block's float form, which integers are made from, with the graph on calibration data.

The float form is read from the graph's structure and from probes of its parts. No later step compares integers with
the model, so a misread angle, epsilon, mask or half of a gate would go unnoticed. Therefore some rows of the data go
through both, with the graph's products unrounded. Both must add the same to each token, up to rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from moec.common.errors import UnsupportedError

Array = np.ndarray[Any, Any]
DType = np.dtype[Any] | type[np.float32]

MOST_TOKENS = 256
"""The number of tokens compared; at least two sequences, even if these are longer."""
BOUND = 1e-4
"""The largest difference, as a part of the most that is added to a channel of the token. Float32 sums in another order
differ by 2e-6 in all examples."""
_ROUNDINGS = 4
"""The number of roundings that a result may be off by, in its type: the error of adding to a large token."""


@dataclasses.dataclass(frozen=True)
class Compared:
    """Results [..., d] of the float form (``actual``) and of the graph (``expected``), and the part of the latter that
    the block ``added`` to its tokens. Results of ``undecided`` tokens, bool [...], may differ. ``unseen``: parts of the
    block that these tokens do not exercise."""

    actual: Array
    expected: Array
    added: Array
    undecided: Array
    unseen: tuple[str, ...] = ()

    @staticmethod
    def whole(actual: Array, expected: Array) -> Compared:
        """A comparison where the block makes all of the result, without a residual."""
        return Compared(actual, expected, expected, np.zeros(expected.shape[:-1], bool))


@dataclasses.dataclass(frozen=True)
class Agreement:
    """The outcome of a comparison. ``largest``: the largest difference, as a part of the most that ``node`` adds to a
    channel of the token; up to ``bound`` it is rounding. ``tokens``: the number compared."""

    node: str
    largest: float
    bound: float
    tokens: int
    unseen: tuple[str, ...] = ()


def agreement(node: str, compared: Compared, dtype: DType = np.float32, computed_in: DType = np.float32) -> Agreement:
    """Check a comparison. ``dtype``: of the graph's result; ``computed_in``: of the sum that the block adds.

    Raises UnsupportedError, naming the node, where the float form and the graph differ by more than rounding.
    """
    if not np.isfinite(compared.expected).all():
        raise UnsupportedError(
            f"{node}: the graph computes numbers that are not finite from calibration data; expected data in its range"
        )
    of_added = BOUND + roundings(computed_in)
    allowed = of_added * _largest(compared.added) + roundings(dtype) * _largest(compared.expected)
    errors = np.abs(compared.actual - compared.expected)
    shares = errors.max(axis=-1, initial=0.0) / np.maximum(allowed, np.finfo(np.float32).tiny)
    shares[compared.undecided] = 0
    largest = float(shares.max(initial=0.0))
    if not largest <= 1:
        token = np.unravel_index(int(np.argmax(np.where(np.isnan(shares), np.inf, shares))), shares.shape)
        channel = int(np.argmax(errors[token]))
        computed, expected = compared.actual[token][channel], compared.expected[token][channel]
        raise UnsupportedError(
            f"{node}: the float form of the block differs from the graph: channel {channel} of calibration token "
            f"{', '.join(map(str, token))} is {computed:.6g}; expected {expected:.6g} within {allowed[token]:.2g}; "
            "calibrate with whole sequences without pads, and if they are, report a defect of moec"
        )
    return Agreement(node, largest * BOUND, BOUND, compared.undecided.size, compared.unseen)


def roundings(dtype: DType) -> float:
    """The relative error of a number of this type after a few operations."""
    return _ROUNDINGS * float(ml_dtypes.finfo(dtype).eps)


def sequences_compared(tokens: int) -> int:
    """The number of sequences to compare if each has this many tokens."""
    return max(2, MOST_TOKENS // max(1, tokens))


def unseen(agreements: Sequence[Agreement]) -> str | None:
    """A warning of one line about the parts of blocks that the calibration data does not exercise; None if it
    exercises all."""
    nodes: dict[str, list[str]] = {}
    for entry in agreements:
        for what in entry.unseen:
            nodes.setdefault(what, []).append(entry.node)
    if not nodes:
        return None
    listed = (f"{what} ({of[0]}{f' and {len(of) - 1} more' if of[1:] else ''})" for what, of in nodes.items())
    return f"the calibration data, on which blocks were compared with the graph, does not show: {'; '.join(listed)}"


def _largest(rows: Array) -> Array:
    return np.abs(rows).max(axis=-1, initial=0.0)
