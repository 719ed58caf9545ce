"""Memory of a run on a device, and how many tokens of a prompt run at once.

A layer of experts reads all its weights in each run, so a long prompt takes fewest reads in few runs; but a run takes
memory for intermediate values of all its tokens. The bytes follow from the program: its blocks, as they were planned,
with powers of two as they are allocated (:mod:`moec.targets.tvm.phases.round_storage`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from moec.common.kernel_sizes import LARGEST_WORK, evaluate, parsed_size

LEAST_TOKENS = 512
"""Tokens, over all sequences, that run at once wherever states are kept; more need more memory."""
FEW_TOKENS = 8
"""Tokens of a sequence up to which all runs compute a token by the same kernels, bit for bit; on a processor, all runs
on more tokens do so, too."""
FEW_TOKENS_ON_GPU = 16
"""The same for the program of a batch on a GPU; its runs on more tokens compute a token alike, too."""
MOST_TOKENS = 1 << 15
"""The most tokens that run at once on a device: beyond, weights are a small part of what a run reads."""
_SHARE = 2
"""Free memory by the part of it that a run may take. The rest is for states that grow, workspaces of kernels, blocks of
other sizes that stay allocated, and other programs."""
LEAST_BLOCK = 4096
"""Bytes of the smallest block."""
LARGEST_BLOCK = 1 << 31
"""Bytes of the largest block of a part: kernels may count its elements with 32 bits, and refuse more."""
Sizes = Mapping[str, int]


class RunMemory:
    """The memory of one program's runs. ``blocks``: their numbers by their bytes, expressions of sizes in C;
    ``free``: the bytes that are free on the device."""

    def __init__(self, where: str, blocks: Mapping[str, int], free: Callable[[], int]) -> None:
        self._where, self._blocks, self._free = where, blocks, free
        self._names = frozenset(name for text in blocks for name in parsed_size(text, where).names)
        self._kept = 0
        """Bytes of the largest run so far, which the device's pool of memory keeps for the next."""

    def tokens(self, least: int, most: int, sizes_of: Callable[[int], Sizes]) -> int:
        """The largest number of tokens from ``least`` to ``most`` that the free memory has room for; ``least`` where it
        has room for none, or sizes are computed while the program runs. ``sizes_of``: all sizes of a run by its number
        of tokens."""
        if most <= least or not self._names <= sizes_of(least).keys():
            return least
        room = (self._free() + self._kept) // _SHARE
        fits, fails = least, most + 1
        while fails - fits > 1:
            middle = (fits + fails) // 2
            blocks = self._blocks_of(sizes_of(middle))
            if sum(size * count for size, count in blocks) <= room and max(blocks)[0] <= LARGEST_BLOCK:
                fits = middle
            else:
                fails = middle
        self._kept = max(self._kept, self.bytes_of(sizes_of(fits)))
        return fits

    def bytes_of(self, sizes: Sizes) -> int:
        """Bytes of a run with these sizes."""
        return sum(size * count for size, count in self._blocks_of(sizes))

    def _blocks_of(self, sizes: Sizes) -> list[tuple[int, int]]:
        """Bytes of a block, and how many there are of it."""
        return [
            (_rounded(evaluate(text, sizes, self._where, LARGEST_WORK)), count) for text, count in self._blocks.items()
        ]


def _rounded(size: int) -> int:
    return 1 << (max(size, LEAST_BLOCK) - 1).bit_length()
