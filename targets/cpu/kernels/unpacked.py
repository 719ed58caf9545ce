"""Weights of a tile for products of bytes: decoded as they are read, or unpacked once for many rows.

Register tiles unpack four-bit weights as they multiply, again for every few rows. Where this costs more than reading
bytes from the caches, the whole tile is unpacked into bytes and float32 scales first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from tvm.script import tirx as T

from moec.targets.cpu.kernels import decode
from moec.targets.cpu.kernels.emit import loop, named
from moec.targets.cpu.kernels.multiplication import Multiplication, Weights, WeightTile


class WeightSource(Protocol):
    """Source of the vectors of a tile's weights; a vector has one word per column."""

    def quads(self, index: Any) -> Iterator[list[Any]]:
        """The quads of inputs in the ``index``-th unit of packing, each as vectors over all columns.

        A word has the four inputs of a quad as unsigned bytes."""
        ...

    def scales(self, group: Any) -> list[Any]:
        """The scales of a group of inputs, float32."""
        ...

    def minima(self, group: Any) -> list[Any]:
        """The minima of a group of inputs, float32; none where the format has none."""
        ...


class StoredTile:
    """Source that decodes the tile from its stored form. ``streamed``: whether to prefetch it."""

    def __init__(self, product: Multiplication, weights: Weights, tile: WeightTile, *, streamed: bool = True) -> None:
        self._product, self._weights, self._tile, self._streamed = product, weights, tile, streamed

    def quads(self, index: Any) -> Iterator[list[Any]]:
        return decode.quads(self._product, self._weights.data, self._tile, index, streamed=self._streamed)

    def scales(self, group: Any) -> list[Any]:
        return self._of_group(decode.scale, self._weights.scales, group)

    def minima(self, group: Any) -> list[Any]:
        if not self._product.stored.minima:
            return []
        return self._of_group(decode.minimum, self._weights.minima, group)

    def _of_group(self, read: Callable[..., Any], table: Any, group: Any) -> list[Any]:
        start = named("start", T.bind(self._tile.scales + group * self._product.columns))
        if self._streamed and self._product.stored.group:
            decode.prefetch_scales(self._product, table, start)
        return [T.bind(read(self._product, self._weights, start, v)) for v in range(self._product.vectors)]


class UnpackedTile:
    """Emits the unpacking. ``most_inner``: the largest number of inputs of a tile.

    Bytes, scales and minima share a buffer: TVM lays small buffers, which are to become registers, into a large one of
    similar size that is not in use, and a buffer of scales alone would be one.
    """

    def __init__(self, product: Multiplication, weights: Weights, tile: WeightTile, most_inner: int) -> None:
        self._product, self._group = product, product.stored.group
        self._first_scale = most_inner // 4
        self._most_groups = most_inner // self._group if self._group else 0
        rows = self._first_scale + self._most_groups * (1 + product.stored.minima)
        self._panel = T.alloc_buffer((rows, 4 * product.columns), "uint8")
        stored, together = StoredTile(product, weights, tile), product.stored.quads
        with loop("index", T.serial(tile.inner // (4 * together))) as index:
            for position, quad in enumerate(stored.quads(index)):
                self._store(index * together + position, quad)
        if self._group:
            with loop("group", T.serial(tile.inner // self._group)) as group:
                self._store(self._first_scale + group, stored.scales(group))
                self._store(self._first_scale + self._most_groups + group, stored.minima(group))

    def flat_bytes(self) -> Any:
        """The bytes in one dimension."""
        rows, width = self._panel.shape
        return T.decl_buffer((rows * width,), "uint8", data=self._panel.data)

    def quads(self, index: Any) -> Iterator[list[Any]]:
        together = self._product.stored.quads
        return (self._load("int32", index * together + position) for position in range(together))

    def scales(self, group: Any) -> list[Any]:
        return self._load("float32", self._first_scale + group)

    def minima(self, group: Any) -> list[Any]:
        if not self._product.stored.minima:
            return []
        return self._load("float32", self._first_scale + self._most_groups + group)

    def _store(self, row: Any, vectors: list[Any]) -> None:
        for v, vector in enumerate(vectors):
            T.buffer_store(self._panel, T.reinterpret(f"uint8x{self._bytes}", vector), [row, self._place(v)])

    def _load(self, dtype: str, row: Any) -> list[Any]:
        vector = f"{dtype}x{self._product.machine.lanes}"
        parts = (self._panel[row, self._place(v)] for v in range(self._product.vectors))
        return [T.bind(T.reinterpret(vector, part)) for part in parts]

    @property
    def _bytes(self) -> int:
        """The bytes of a vector."""
        return 4 * self._product.machine.lanes

    def _place(self, v: int) -> Any:
        return T.ramp(v * self._bytes, 1, self._bytes)
