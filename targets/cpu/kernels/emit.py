"""Small helpers of the kernels: how to cut an odd size into pieces that vector instructions like."""

from __future__ import annotations


def power_of_two_parts(limit: int) -> list[int]:
    """The powers of two up to ``limit``, largest first: with them any count up to ``limit`` can be put together."""
    return [1 << bit for bit in reversed(range(limit.bit_length()))]


def vector_parts(count: int) -> list[tuple[int, int]]:
    """Cut ``count`` elements into (start, length) pieces whose lengths are powers of two, largest first."""
    parts: list[tuple[int, int]] = []
    start = 0
    for length in power_of_two_parts(count):
        if count & length:
            parts.append((start, length))
            start += length
    return parts
