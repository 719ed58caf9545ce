"""The memory of the PTX interpreter: arrays in global memory, and the shared memory of one block."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from .values import Array, PtxError

_NOBODY = -1
SHARED_START = 0x400


def bytes_at(starts: Array, count: int) -> Array:
    """The offsets of each lane's bytes, [lanes, count]."""
    return starts.astype(np.int64)[:, None] + np.arange(count)


class GlobalMemory:
    """The arrays of a launch, each at a separate address that is a multiple of 256."""

    def __init__(self, arrays: Sequence[Array]) -> None:
        self._arrays = [array.reshape(-1).view(np.uint8) for array in arrays]
        self._written = [np.zeros(array.size, bool) for array in self._arrays]
        self._read_only = [np.zeros(array.size, bool) for array in self._arrays]

    @staticmethod
    def address(number: int) -> int:
        """The address of an array, given its number."""
        return (number + 1) << 40

    def _places(self, addresses: Array, count: int) -> tuple[int, Array]:
        """The number of the array at these addresses, and the bytes' offsets in it, [lanes, count]. Raises PtxError if
        they are not all inside one array."""
        numbers = (addresses >> np.uint64(40)).astype(np.int64) - 1
        if len(np.unique(numbers)) != 1 or not 0 <= numbers[0] < len(self._arrays):
            raise PtxError("addresses in no array, or in several")
        number = int(numbers[0])
        places = bytes_at(addresses & np.uint64((1 << 40) - 1), count)
        if (places >= self._arrays[number].size).any():
            beyond = int(places.max()) - self._arrays[number].size + 1
            raise PtxError(f"{beyond} bytes behind the end of array {number}, or before its beginning")
        return number, places

    def read(self, addresses: Array, count: int, *, read_only: bool = False) -> Array:
        """Read bytes [lanes, count]. ``read_only``: through the read-only cache, which is not coherent with stores of
        the same launch."""
        number, places = self._places(addresses, count)
        if read_only:
            if self._written[number][places].any():
                raise PtxError(f"a read-only load of bytes of array {number} that the same launch writes")
            self._read_only[number][places] = True
        return self._arrays[number][places]

    def write(self, addresses: Array, data: Array) -> None:
        number, places = self._places(addresses, data.shape[1])
        if self._read_only[number][places].any():
            raise PtxError(f"a store to bytes of array {number} that the same launch reads with read-only loads")
        self._written[number][places] = True
        self._arrays[number][places] = data


@dataclasses.dataclass
class _Accesses:
    """The thread that accessed each byte last, and the epoch of that access, counted by barriers of the block and of
    the warp."""

    thread: Array
    block: Array
    warp: Array

    @staticmethod
    def of(count: int) -> _Accesses:
        return _Accesses(*(np.full(count, start, np.int64) for start in (_NOBODY, 0, 0)))


class SharedMemory:
    """The shared memory of one block. All bytes are 0xff at first, which is NaN.

    An access is a race if another thread accessed the byte since the last barrier of the block (or of the warp, if both
    are in one), or while a copy to the byte is in flight. Not every race is found: only the last reader of a byte is
    known, and named barriers count as barriers of the whole block.
    """

    def __init__(self, count: int, threads: int) -> None:
        self.data = np.full(count, 0xFF, np.uint8)
        self._arriving = np.zeros(count, bool)
        self._in_use = np.zeros(count, np.int64)
        self._unpublished = np.full(count, _NOBODY, np.int64)
        self._writes, self._reads = _Accesses.of(count), _Accesses.of(count)
        self.epoch = 0
        self._warp_epochs = np.zeros(-(-threads // 32), np.int64)

    def barrier(self) -> None:
        self.epoch += 1

    def warp_barrier(self, threads: Array) -> None:
        self._warp_epochs[np.unique(threads // 32)] += 1

    def _places(self, addresses: Array, count: int) -> Array:
        places = bytes_at(addresses.astype(np.int64) - SHARED_START, count)
        if (places < 0).any() or (places >= self.data.size).any():
            raise PtxError(f"an access outside of shared memory, which has {self.data.size} bytes")
        return places

    def _expect_ordered(self, accesses: _Accesses, threads: Array, places: Array, what: str) -> None:
        other = accesses.thread[places]
        same_warp = other // 32 == threads[:, None] // 32
        in_epoch = accesses.block[places] == self.epoch
        in_epoch &= ~same_warp | (accesses.warp[places] == self._warp_epochs[threads // 32][:, None])
        if ((other != _NOBODY) & (other != threads[:, None]) & in_epoch).any():
            raise PtxError(f"race: bytes of shared memory {what} by another thread, and no barrier lies between")

    def _note(self, accesses: _Accesses, threads: Array, places: Array) -> None:
        accesses.thread[places] = threads[:, None]
        accesses.block[places] = self.epoch
        accesses.warp[places] = self._warp_epochs[threads // 32][:, None]

    def publish(self, threads: Array) -> None:
        """Make earlier writes of these threads visible to TMA and wgmma."""
        self._unpublished[np.isin(self._unpublished, threads)] = _NOBODY

    def begin_use(self, places: Array) -> None:
        """Mark bytes as being read by a product in flight."""
        self._expect_arrived(places, "read by a product")
        if (self._unpublished[places] != _NOBODY).any():
            raise PtxError("bytes of shared memory are read that a thread wrote without passing fence.proxy.async")
        self._in_use[places] += 1

    def end_use(self, places: Array) -> None:
        self._in_use[places] -= 1

    def _expect_unused(self, places: Array) -> None:
        if self._in_use[places].any():
            raise PtxError("bytes of shared memory are overwritten while a product still reads them")

    def _expect_arrived(self, places: Array, does: str) -> None:
        if self._arriving[places].any():
            raise PtxError(f"bytes of shared memory are {does} while a copy to them is under way")

    def read(self, addresses: Array, count: int, threads: Array) -> Array:
        places = self._places(addresses, count)
        self._expect_arrived(places, "read")
        self._expect_ordered(self._writes, threads, places, "were written")
        self._note(self._reads, threads, places)
        return self.data[places]

    def write(self, addresses: Array, data: Array, threads: Array) -> None:
        places = self._places(addresses, data.shape[1])
        self._expect_arrived(places, "written")
        for accesses, what in ((self._writes, "were written"), (self._reads, "were read")):
            self._expect_ordered(accesses, threads, places, what)
        self._expect_unused(places)
        self._note(self._writes, threads, places)
        self._unpublished[places] = threads[:, None]
        self.data[places] = data

    def begin_copy(self, addresses: Array, count: int, threads: Array) -> None:
        places = self._places(addresses, count)
        self._expect_arrived(places, "written")
        for accesses, what in ((self._writes, "were written"), (self._reads, "were read")):
            self._expect_ordered(accesses, threads, places, what)
        self._expect_unused(places)
        self._arriving[places] = True

    def end_box(self, addresses: Array, data: Array) -> None:
        """Complete a copy by TMA: store its bytes."""
        places = addresses - SHARED_START
        self._arriving[places] = False
        self._unpublished[places] = _NOBODY
        self._writes.thread[places] = _NOBODY
        self.data[places] = data

    def end_copy(self, address: int, data: Array, thread: int) -> None:
        places = self._places(np.array([address]), len(data))
        self._arriving[places] = False
        self._note(self._writes, np.array([thread]), places)
        self._unpublished[places] = thread
        self.data[places] = data


def layout(declared: Mapping[str, tuple[int, int]], pools: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """The addresses of shared arrays and of the pools after them, and the bytes before the pools. ``declared``:
    alignment and bytes of each array; ``pools``: alignment of each pool. A pool is never aligned better than declared,
    so that a declaration that is too weak is noticed."""
    symbols, position = dict[str, int](), SHARED_START
    for name, (alignment, count) in declared.items():
        position = -(-position // alignment) * alignment
        symbols[name] = position
        position += count
    for name, alignment in pools.items():
        multiple = -(-position // alignment)
        symbols[name] = position = (multiple + 1 - multiple % 2) * alignment
    return symbols, position - SHARED_START
