"""Layers of stages, as users write them."""

from __future__ import annotations

import pytest

from moec.common.errors import MoecError
from moec.compiling.layer_ranges import LayerRanges


@pytest.mark.parametrize(
    ("text", "layers", "expected"),
    [
        (2, 24, [(0, 12), (12, 24)]),
        ("3", 8, [(0, 2), (2, 5), (5, 8)]),
        ("0-11,12-23", 24, [(0, 12), (12, 24)]),
        ("0, 1-6 ,7", 8, [(0, 1), (1, 7), (7, 8)]),
    ],
)
def test_every_layer_is_in_one_stage(text: str | int, layers: int, expected: list[tuple[int, int]]) -> None:
    assert LayerRanges.parse(text).of(layers) == [range(*ends) for ends in expected]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (1, "expected a number of stages from 2 up"),
        (0, "expected a number of stages from 2 up"),
        (True, "expected a number of stages"),
        ("", "expected a number of stages"),
        ("0-3", "one stage alone"),
        ("0-3,4-x", "expected a number of stages"),
        ("3-0,1-4", "expected a number of stages"),
        ("0-3,5-7", "begins with layer 5; expected 4"),
        ("0-3,3-7", "begins with layer 3; expected 4"),
        ("1-3,4-7", "begins with layer 1; expected 0"),
    ],
)
def test_other_text_is_refused(text: str | int, message: str) -> None:
    with pytest.raises(MoecError, match=message):
        LayerRanges.parse(text)


@pytest.mark.parametrize(
    ("text", "layers", "message"),
    [
        ("5", 4, "4 layers, too few for 5 stages"),
        ("0-3,4-7", 9, "end with layer 7, and the model's layers are 0 to 8"),
        ("0-3,4-7", 7, "end with layer 7, and the model's layers are 0 to 6"),
    ],
)
def test_other_layers_are_refused(text: str, layers: int, message: str) -> None:
    with pytest.raises(MoecError, match=message):
        LayerRanges.parse(text).of(layers)
