"""The roofline: the least time of a computation from measured limits."""

from __future__ import annotations

import pytest

from moec.common.roofline import Peak, Roofline

ROOFLINE = Roofline(
    threads=2,
    bandwidths={"4K pages": 10e9, "huge pages": 20e9},
    peaks=(Peak("float32", "AVX-512", 200e9), Peak("int8", "AVX-512", 800e9), Peak("int8", "AMX", 3200e9)),
)


@pytest.mark.parametrize(
    ("operations", "bytes_read", "arithmetic", "seconds"),
    [
        (200e9, 1, "float32", 1),
        (1, 20e9, "float32", 1),
        (3200e9, 40e9, "int8", 2),
        (3200e9, 0, "int8", 1),
        (400e9, 0, "bfloat16", 2),  # no unit of its own: widened to float32
    ],
)
def test_the_least_time_is_the_longer_of_two(operations, bytes_read, arithmetic, seconds):
    assert ROOFLINE.seconds(operations, bytes_read, arithmetic) == pytest.approx(seconds)


def test_units_can_be_left_out():
    assert ROOFLINE.peak("int8", without="AMX") == 800e9
    assert ROOFLINE.seconds(800e9, 0, "int8", without="AMX") == 1


def test_plain_data_and_back():
    assert Roofline.from_data(ROOFLINE.as_data()) == ROOFLINE
