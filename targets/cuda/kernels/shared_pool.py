"""Shared memory that a kernel asks for at its launch, declared alike in all kernels.

A program's kernels are one source, in which nvcc takes one alignment for all arrays of the name that TVM gives them:
that of the first.
"""

from __future__ import annotations

from typing import Any

from tvm.backend.cuda.lang import SMEMPool
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder

from moec.targets.cuda.text.shared_arrays import name_shared_array

SWIZZLE_ALIGNMENT = 1024
"""Bytes after which the 128-byte swizzle repeats. TMA and ``wgmma`` read it off an address, while kernels count rows
from the beginning of a tile: both agree where that is a multiple (PTX ISA, "Shared memory layout and swizzling")."""


class SharedPool(SMEMPool):
    """A pool that begins at a multiple of 1024 bytes, whatever static arrays lie before it; TVM's own promises 64."""

    def __init__(self) -> None:
        whole = T.alloc_buffer([0], "uint8", scope="shared.dyn", align=SWIZZLE_ALIGNMENT)
        IRBuilder.name("shared", whole)
        super().__init__(whole.data)
        self.buf, self._owns_buffer = whole, True  # so that `commit` says how large it is

    def commit_named(self, **arrays: Any) -> None:
        """Says how large the pool is, and what its arrays are called in the text of the kernel: barriers likewise."""
        for name, array in arrays.items():
            name_shared_array(name, getattr(array, "buf", array))
        self.commit()
