"""Layouts of a file's arrays are found from their numbers."""

import numpy as np
import pytest

from moec.exporting.part_layouts import PartLayout, layout_of

RANDOM = np.random.default_rng(0)
PARTS = {name: RANDOM.normal(size=(4, 6)).astype(np.float32) for name in ("gate", "up")}
PARTS["down"] = RANDOM.normal(size=(6, 4)).astype(np.float32)
BIASES = {name: matrix[0] for name, matrix in PARTS.items()}


@pytest.mark.parametrize(
    "layout",
    [
        PartLayout(("down",), turned=True),
        PartLayout(("gate",)),
        PartLayout(("gate", "up"), turned=True),
        PartLayout(("up", "gate"), axis=1),
        PartLayout(("gate", "up"), axis=1, interleaved=True),
        PartLayout(("up", "gate"), turned=True, interleaved=True),
    ],
)
def test_a_layout_is_found(layout):
    array = layout.of(PARTS)
    np.testing.assert_array_equal(layout_of(array, PARTS).of(PARTS), array)


def test_parts_lie_where_the_layout_says():
    both = PartLayout(("gate", "up"), axis=1, interleaved=True).of(PARTS)
    np.testing.assert_array_equal(both[:, 0::2], PARTS["gate"])
    np.testing.assert_array_equal(PartLayout(("gate", "up"), turned=True).of(PARTS)[6:], PARTS["up"].T)


def test_biases_have_one_axis():
    assert layout_of(np.concatenate([BIASES["up"], BIASES["gate"]]), BIASES) == PartLayout(("up", "gate"))


def test_other_numbers_have_no_layout():
    array = PARTS["down"].copy()
    array[0, 0] += 1
    assert layout_of(array, PARTS) is None
    assert layout_of(PARTS["down"][:, :3], PARTS) is None
    assert layout_of(np.float32(1), BIASES) is None
