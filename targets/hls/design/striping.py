"""Packed weights striped over AXI masters: tile by tile, each master gets its part of every section in one burst.

The memories of a section take its beats in turn, and each memory has one master: with N masters and B memories, beat i
comes through master ``i % min(N, B)``. The table of the activation comes through the first.
"""

from __future__ import annotations

from collections.abc import Iterable

from moec.targets.hls.design.experts import Design
from moec.targets.hls.design.numbers import BEAT_BYTES, multiplier_banks

_ACTIVATION_BEATS = 256 * 2 // BEAT_BYTES
Section = tuple[int, int]
"""The beats of a section, and the number of memories that they go to."""


def stripe_up(design: Design, packed: bytes) -> dict[str, bytes]:
    """The stripes of the bytes that ``pack_up`` made, by file."""
    rows = design.projections * design.lanes_out
    tile = [
        (design.parameter_beats_up, design.projections * design.parameter_banks),
        (design.multiplier_beats_up, multiplier_banks(rows)),
        (design.weight_beats_up, design.banks_up),
    ]
    tiles = design.shape.all_experts * design.tiles
    return _striped("up", packed, [(_ACTIVATION_BEATS, 1), *(tile * tiles)], design.masters_up)


def stripe_down(design: Design, packed: bytes) -> dict[str, bytes]:
    """The stripes of the bytes that ``pack_down`` made, by file."""
    tile = [
        (design.multiplier_beats_down, multiplier_banks(design.lanes_out)),
        (design.weight_beats_down, design.banks_down),
    ]
    expert = [*(tile * design.tiles), (design.parameter_beats_down, design.parameter_banks)]
    return _striped("down", packed, expert * design.shape.all_experts, design.masters_down)


def stripe_names(matrix: str, masters: int) -> list[str]:
    """The names of masters, ports and files of a matrix. A single one has no number."""
    return [matrix] if masters == 1 else [f"{matrix}_{place}" for place in range(masters)]


def _striped(matrix: str, packed: bytes, sections: Iterable[Section], masters: int) -> dict[str, bytes]:
    parts: list[list[bytes]] = [[] for _ in range(masters)]
    place = 0
    for beats, banks in sections:
        stripes = min(masters, banks)
        for beat in range(beats):
            parts[beat % stripes].append(packed[place : place + BEAT_BYTES])
            place += BEAT_BYTES
    assert place == len(packed)
    names = stripe_names(matrix, masters)
    return {f"{name}.bin": b"".join(part) for name, part in zip(names, parts, strict=True)}
