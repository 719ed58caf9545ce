"""Dense products with float weights, for tests of the kernels alone."""

from __future__ import annotations

import numpy as np

from moec.ir.weights.encode import Encoded
from moec.targets.cpu.hardware.machine import Machine
from moec.targets.cpu.kernels.gemm import gemm
from moec.targets.cpu.kernels.grouped_gemm import PackedProduct
from moec.targets.cpu.kernels.pack_experts import pack_data
from moec.targets.cpu.kernels.tiled_format import TiledFormat


def problem(inner: int, columns: int, machine: Machine, storage: str = "float32") -> PackedProduct:
    return PackedProduct(1, inner, columns, False, machine, (TiledFormat(storage),))


def dense(inner: int, columns: int, machine: Machine, storage: str = "float32"):
    """The kernel; inner has to be even for bfloat16."""
    return gemm(problem(inner, columns, machine, storage), input_width=inner, dtype=storage)


def pack(weight: np.ndarray, machine: Machine, storage: str = "float32") -> np.ndarray:
    """A weight [inner, columns] in the kernel's order."""
    return pack_data(problem(*weight.shape, machine, storage), 0, [Encoded(weight)])
