"""Matrix tiles (Intel AMX): blocks of 32 rows times 32 columns in four tile registers.

A tile register has 16 rows of 64 bytes. One instruction multiplies a tile of activations [16 rows, 64 bytes of K] by a
tile of weights [16 words of K, 16 columns] into 16 x 16 sums; the words hold two bfloat16 or four bytes, in the order
in which :mod:`moec.targets.cpu.kernels.tiled_format` keeps them (Intel 64 and IA-32 Architectures Software Developer's
Manual, volume 1, chapter 18). Two tiles of rows by two of columns use every loaded tile twice, which hides the loads.

Tiles are loaded whole: up to :data:`ROWS` - 1 rows behind the last one are read, and their sums are not used.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm.script import tirx as T

from moec.targets.cpu.hardware.machine import Machine
from moec.targets.cpu.kernels.emit import loop, named
from moec.targets.cpu.kernels.register_tile import prefetch

ROWS = 32
"""Rows and columns of a block."""
_HALF = 16
_LINE = 64
_PREFETCH_STEPS = 4
"""How many steps of K ahead the weights are prefetched."""
_SUMS, _LEFT, _RIGHT = (0, 1, 2, 3), (4, 5), (6, 7)
"""The tile registers: sums [row half * 2 + column half], activations by row half, weights by column half."""


def can_multiply(machine: Machine, element: str) -> bool:
    """Whether the machine has tiles for ``element``: ``bfloat16`` or ``int8``."""
    return {"amx-tile", f"amx-{'bf16' if element == 'bfloat16' else 'int8'}"}.issubset(machine.features)


def _tile(name: str, *arguments: Any) -> None:
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *arguments))


def configure(step_bytes: int = _LINE) -> None:
    """Emit the configuration of this thread's tiles, with ``step_bytes`` bytes of K per multiplication."""
    palette = named("palette", T.alloc_buffer((16,), "int32"))
    with loop("i", T.vectorized(16)) as i:
        T.buffer_store(palette, T.int32(0), [i])
    bytes_per_row = [_LINE] * 4 + [step_bytes] * 2 + [_LINE] * 2
    rows = [_HALF] * 6 + [step_bytes // 4] * 2
    T.buffer_store(palette, T.int32(1), [0])
    for i in range(4):
        T.buffer_store(palette, T.int32(bytes_per_row[2 * i] | bytes_per_row[2 * i + 1] << 16), [4 + i])
    for i in range(2):
        T.buffer_store(palette, T.int32(sum(rows[4 * i + j] << 8 * j for j in range(4))), [12 + i])
    _tile("ldtilecfg", T.address_of(palette[0]))


def release() -> None:
    """Emit the end of the use of tiles: the system need not keep them any more."""
    _tile("tilerelease")


@dataclasses.dataclass(frozen=True)
class BlockProduct:
    """``sums[32, 32] = left[32, K] @ right[K, 32]``.

    ``left``: buffer [rows, bytes or bfloat16] whose rows lie ``left_stride`` bytes apart. ``right``: the packed
    weights, one step of K after the other. ``element``: ``bfloat16`` (float32 sums) or ``int8`` (signed times unsigned
    bytes, int32 sums). ``step_bytes``: bytes of K per multiplication; a group of inputs has to be a multiple of it.
    """

    element: str
    left: Any
    left_stride: int
    right: Any
    step_bytes: int = _LINE

    @property
    def _elements(self) -> int:
        """Elements of K per step."""
        return self.step_bytes // (2 if self.element == "bfloat16" else 1)

    def steps(self, inner: Any) -> Any:
        return inner // self._elements

    def emit(
        self, row: Any, first: Any, right_start: Any, steps: Any, result: Any, result_row: Any, *, halves: int
    ) -> None:
        """Emit the product of rows ``row`` on, over ``steps`` steps from element ``first`` of K and from element
        ``right_start`` of the weights on, into ``result`` [rows, 32] from ``result_row`` on; ``halves``: 1 computes the
        first 16 rows only."""
        used = [2 * i + j for i in range(halves) for j in range(2)]
        for tile in used:
            _tile("tilezero", T.int8(_SUMS[tile]))
        with loop("step", T.serial(steps)) as step:
            self._load(row, first, right_start, step, halves)
            multiply = "tdpbf16ps" if self.element == "bfloat16" else "tdpbsud"
            for tile in used:
                operands = T.int8(_LEFT[tile // 2]), T.int8(_RIGHT[tile % 2])
                _tile(multiply, T.int8(_SUMS[tile]), *operands)
        for tile in used:
            corner = T.address_of(result[result_row + tile // 2 * _HALF, tile % 2 * _HALF])
            _tile("tilestored64", T.int8(_SUMS[tile]), corner, T.int64(ROWS * 4))

    def _load(self, row: Any, first: Any, right_start: Any, step: Any, halves: int) -> None:
        column = first + step * self._elements
        for half in range(halves):
            address = T.address_of(self.left[row + half * _HALF, column])
            _tile("tileloadd64", T.int8(_LEFT[half]), address, T.int64(self.left_stride))
        words = self.step_bytes // 4  # rows of a tile of weights
        per_word = 4 if self.element == "int8" else 2
        start = right_start + step * (words * ROWS * per_word)
        ahead = start + _PREFETCH_STEPS * words * ROWS * per_word
        for line in range(2 * words):
            prefetch(self.right[ahead + line * (_HALF * per_word)])
        for half in range(2):
            address = T.address_of(self.right[start + half * _HALF * per_word])
            _tile("tileloadd64", T.int8(_RIGHT[half]), address, T.int64(2 * _LINE))
