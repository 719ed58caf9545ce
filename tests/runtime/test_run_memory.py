"""The number of tokens that run at once, by the blocks of a program and the memory that is free."""

from __future__ import annotations

import pytest

from moec.common.errors import ArtifactError
from moec.runtime.run_memory import LARGEST_BLOCK, RunMemory

BLOCKS = {"S * 100": 2, "(S + P) / 2 * 4": 1, "8": 3}
"""Blocks of a run on S tokens behind P."""


class Device:
    """Memory of which runs keep the blocks that they took."""

    def __init__(self, free: int) -> None:
        self.free, self._held = free, 0

    def run(self, bytes_of_run: int) -> None:
        self.free -= max(0, bytes_of_run - self._held)
        self._held = max(bytes_of_run, self._held)


def sizes(tokens: int) -> dict[str, int]:
    return {"S": tokens, "P": 1000}


def test_bytes_are_powers_of_two_of_each_block():
    memory = RunMemory("art", BLOCKS, lambda: 0)
    assert memory.bytes_of({"S": 50, "P": 9000}) == 2 * 8192 + 32768 + 3 * 4096
    assert memory.bytes_of({"S": 0, "P": 0}) == 6 * 4096


@pytest.mark.parametrize("free", [0, 1 << 13, 1 << 15, 1 << 20, 1 << 40])
def test_the_most_tokens_that_half_of_the_free_memory_has_room_for(free):
    memory = RunMemory("art", BLOCKS, lambda: free)
    tokens = memory.tokens(3, 5000, sizes)
    fitting = [count for count in range(3, 5001) if memory.bytes_of(sizes(count)) <= free // 2]
    assert tokens == max(fitting, default=3)


def test_no_block_is_larger_than_kernels_count():
    """A mask of all new tokens by all tokens."""
    blocks = {"S * P * 4": 1}
    tokens = RunMemory("art", blocks, lambda: 1 << 50).tokens(512, 1 << 15, lambda new: {"S": new, "P": 1 << 18})
    assert tokens == LARGEST_BLOCK // (4 << 18)


def test_what_runs_keep_is_room_for_the_next():
    device = Device(1 << 20)
    memory = RunMemory("art", BLOCKS, lambda: device.free)
    first = memory.tokens(1, 5000, sizes)
    for _ in range(3):
        device.run(memory.bytes_of(sizes(first)))
        assert memory.tokens(1, 5000, sizes) == first
    device.free //= 8  # a session took the rest
    assert memory.tokens(1, 5000, sizes) < first


@pytest.mark.parametrize(("least", "most"), [(512, 512), (512, 7)])
def test_short_prompts_ask_no_device(least, most):
    def free() -> int:
        raise AssertionError("the device was asked")

    assert RunMemory("art", BLOCKS, free).tokens(least, most, sizes) == least


def test_sizes_that_only_a_run_tells_leave_the_least():
    assert RunMemory("art", {**BLOCKS, "found * 4": 1}, lambda: 1 << 40).tokens(512, 4096, sizes) == 512


def test_blocks_of_a_damaged_manifest_are_refused():
    with pytest.raises(ArtifactError, match=r"art: size .__import__.* is neither"):
        RunMemory("art", {"__import__('os')": 1}, lambda: 0)
    with pytest.raises(ArtifactError, match="size 'S - 9999' is -9993"):
        RunMemory("art", {"S - 9999": 1}, lambda: 1).tokens(1, 10, sizes)
