"""The pool of dynamic shared memory of a kernel, declared in the same way in all kernels.

A program's kernels are one source, and TVM gives their pools one name. nvcc uses the alignment of the first declaration
for all of them.
"""

from __future__ import annotations

from typing import Any

from tvm.backend.cuda.lang import SMEMPool
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder

from moec.targets.cuda.text.shared_arrays import name_shared_array

SWIZZLE_ALIGNMENT = 1024
"""Bytes after which the 128-byte swizzle repeats. TMA and ``wgmma`` derive the swizzle from the address, but kernels
from the row within a tile. Both agree if the tile is aligned to this (PTX ISA, "Shared memory layout and
swizzling")."""


class SharedPool(SMEMPool):
    """A pool that is aligned to 1024 bytes, even after static arrays; TVM's own is aligned to 64 bytes only."""

    def __init__(self) -> None:
        whole = T.alloc_buffer([0], "uint8", scope="shared.dyn", align=SWIZZLE_ALIGNMENT)
        IRBuilder.name("shared", whole)
        super().__init__(whole.data)
        self.buf, self._owns_buffer = whole, True  # so that `commit` sets its size

    def commit_named(self, **arrays: Any) -> None:
        """Set the size of the pool, and the names of its arrays and barriers in the text of the kernel."""
        for name, array in arrays.items():
            name_shared_array(name, getattr(array, "buf", array))
        self.commit()
