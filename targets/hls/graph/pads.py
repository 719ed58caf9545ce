"""Removal of pads from calibration data: sequences of different lengths, told apart by a mask.

The content of a pad must not influence a scale, appear in the testbench, or be compared with the graph. So pads are
replaced: the tokens of a sequence are repeated until it is as long as before. In a causal model a token sees only
tokens up to itself, so all real tokens keep their numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from moec.common.errors import InputError

Array = np.ndarray[Any, Any]


def without_pads(inputs: Mapping[str, Array], masks: Collection[str]) -> tuple[dict[str, Array], str | None]:
    """``inputs`` with pads replaced, and a remark of one line about it; None where there were no pads. ``masks``: the
    inputs that masks are made of, [B, T], 0 for a hidden token.

    Raises InputError, naming the input and the sequence, where the tokens that a mask shows are not contiguous.
    """
    padded = {name: array for name, array in inputs.items() if name in masks and _is_padded(array)}
    if not padded:
        return dict(inputs), None
    name, mask = next(iter(padded.items()))
    kept = mask != 0
    for other, array in padded.items():
        if array.shape != kept.shape or ((array != 0) != kept).any():
            raise InputError(f"calibration data for {name!r} and {other!r} pad different tokens; expected the same")
    _expect_in_one_piece(name, kept)
    starts, counts = kept.argmax(axis=1), kept.sum(axis=1)
    whole = {
        key: np.ones_like(array) if key in padded else _whole(array, starts, counts, kept.shape)
        for key, array in inputs.items()
    }
    rows = int((counts < kept.shape[1]).sum())
    pads = kept.size - int(kept.sum())
    return whole, (
        f"{name!r} hides {pads} of {kept.size} calibration tokens, pads of {rows} of {len(kept)} sequences: scales are "
        "not taken from them, the tokens of each sequence follow once more in their place"
    )


def _is_padded(array: Array) -> bool:
    return array.ndim == 2 and bool(np.isin(array, (0, 1)).all()) and not array.all()


def _expect_in_one_piece(name: str, kept: Array) -> None:
    edges = np.abs(np.diff(np.pad(kept, ((0, 0), (1, 1))).astype(np.int8), axis=1)).sum(axis=1)
    for row, count in enumerate(edges.tolist()):
        if count != 2:
            what = "no token" if not count else "tokens with pads between them"
            raise InputError(
                f"calibration data for {name!r} shows {what} in sequence {row}; expected one run of tokens, with "
                "pads before or after it"
            )


def _whole(array: Array, starts: Array, counts: Array, shape: tuple[int, ...]) -> Array:
    """An input [B, T, ...] with the tokens of each sequence repeated in place of its pads; other inputs as they are.
    Positions go on counting instead. An input is taken for positions if its numbers count up from 0, or from the place
    of the first token; ids of a vocabulary do so only by chance."""
    if array.shape[:2] != shape:
        return array
    places = np.arange(shape[1])
    repeated = np.stack([row[start + places % count] for row, start, count in zip(array, starts, counts, strict=True)])
    first = repeated[:, :1]
    is_counting = array.ndim == 2 and np.issubdtype(array.dtype, np.integer) and counts.max() > 1
    counted = first + places.astype(array.dtype) if is_counting else repeated
    own = places < counts[:, None]
    if not is_counting or not ((first[:, 0] == 0) | (first[:, 0] == starts)).all():
        return repeated
    return counted if (counted == repeated)[own].all() else repeated
