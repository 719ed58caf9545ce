"""Published figures of GPUs, and the blocks of threads that a multiprocessor holds. moec measured none of them.

Sources, with the abbreviations used below:

A     NVIDIA A100 Tensor Core GPU Architecture (white paper, 2020), and its data sheet for 80 GB SXM.
H     NVIDIA H100 Tensor Core GPU Architecture (white paper, 2022), and its data sheet for SXM.
L     NVIDIA Ada GPU Architecture (white paper, 2022), appendix on GeForce RTX 4090.
B     NVIDIA Blackwell Architecture Technical Brief (2024), on HGX B200; the number of multiprocessors is what CUDA
      reports for a B200.
T     NVIDIA Blackwell Tuning Guide (CUDA 13).
G     NVIDIA RTX Blackwell GPU Architecture (white paper, 2025), appendix on GeForce RTX 5090.
P     NVIDIA RTX PRO Blackwell GPU Architecture (white paper, 2025), RTX PRO 6000 Workstation Edition.
C     CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".

Occupancy follows NVIDIA's calculator: registers are allocated to warps in units of 256, and each of the four schedulers
holds the same number of warps. Shared memory is allocated to blocks in units of 128 bytes, and the system takes 1 KiB
per block (compute capability 8.0 and up).
"""

from __future__ import annotations

import dataclasses

from moec.common.errors import MoecError
from moec.common.roofline import FLOAT32, Peak, Roofline
from moec.targets.gpu.constants import FP8, WARP

_REGISTERS = 65536
"""Registers of a multiprocessor (C)."""
_REGISTER_UNIT = 256
_WARP_UNIT = 4
_SHARED_UNIT = 128
_RESERVED_SHARED = 1024
_TENSOR_COLUMNS = 512
"""Columns of tensor memory of a multiprocessor that has one (PTX ISA, "Tensor Memory")."""


@dataclasses.dataclass(frozen=True)
class Occupancy:
    """The ``blocks`` and ``warps`` that a multiprocessor holds at once. ``limit``: the resource that allows no more,
    ``registers``, ``shared memory``, ``tensor memory``, ``warps`` or ``blocks``, or several of them joined by "and"."""

    blocks: int
    warps: int
    limit: str


@dataclasses.dataclass(frozen=True)
class Gpu:
    """The figures of a GPU, as NVIDIA published them. Rates are bytes or operations per second."""

    name: str
    capability: str
    multiprocessors: int
    memory: float
    l2_bytes: int
    shared_bytes: int
    """Shared memory of a multiprocessor, for all of its blocks, including what the system reserves (C)."""
    warps: int
    """The most warps that a multiprocessor holds (C)."""
    blocks: int
    """The most blocks that a multiprocessor holds (C)."""
    tensor: float
    """The rate of tensor cores on 16-bit floats with sums in float32, dense."""
    float32: float
    """The rate without tensor cores."""
    fp8: float = 0.0
    """The rate on 8-bit floats with sums in float32, dense; 0 if the GPU cannot multiply them."""
    scaled_fp8: float = 0.0
    """The rate of ``mma`` on 8-bit floats with block scales; 0 if the GPU does not have the instruction."""
    scaled_fp4: float = 0.0
    """The same on 4-bit floats."""

    @property
    def roofline(self) -> Roofline:
        """The limits of the GPU. The rate on tf32 is half of that on 16 bits (A, H, L; a little less in B)."""
        rates = {"float16": self.tensor, "bfloat16": self.tensor, "tf32": self.tensor / 2, FP8: self.fp8}
        rates |= {"mxfp8": self.scaled_fp8, "mxfp4": self.scaled_fp4, "nvfp4": self.scaled_fp4}
        peaks = [Peak(dtype, "tensor cores", rate) for dtype, rate in rates.items() if rate]
        return Roofline(1, {"memory": self.memory}, (Peak(FLOAT32, "float units", self.float32), *peaks))

    def occupancy(self, threads: int, registers: int, shared_bytes: int, tensor_columns: int = 0) -> Occupancy:
        """The occupancy for blocks of ``threads`` threads with ``registers`` registers each, ``shared_bytes`` of shared
        memory and ``tensor_columns`` of tensor memory; 0 blocks if not even one fits."""
        warps = -(-threads // WARP)
        registers_of_warp = _rounded_up(max(registers, 1) * WARP, _REGISTER_UNIT)
        most_blocks = {
            "registers": _REGISTERS // registers_of_warp // _WARP_UNIT * _WARP_UNIT // warps,
            "shared memory": self.shared_bytes // _rounded_up(shared_bytes + _RESERVED_SHARED, _SHARED_UNIT),
            "warps": self.warps // warps,
            "blocks": self.blocks,
        }
        if tensor_columns:
            most_blocks["tensor memory"] = _TENSOR_COLUMNS // tensor_columns
        blocks = min(most_blocks.values())
        limits = [name for name, most in most_blocks.items() if most == blocks]
        return Occupancy(blocks, blocks * warps, " and ".join(limits))


GPUS = {
    "a100": Gpu(
        name="A100 SXM 80GB",
        capability="8.0",
        multiprocessors=108,  # A
        memory=2039e9,  # A
        l2_bytes=40 << 20,  # A
        shared_bytes=164 << 10,
        warps=64,
        blocks=32,
        tensor=312e12,  # A
        float32=19.5e12,  # A
    ),
    "h100": Gpu(
        name="H100 SXM",
        capability="9.0",
        multiprocessors=132,  # H
        memory=3352e9,  # H
        l2_bytes=50 << 20,  # H
        shared_bytes=228 << 10,
        warps=64,
        blocks=32,
        tensor=989.4e12,  # H
        float32=66.9e12,  # H
        fp8=1978.9e12,  # H
    ),
    "b200": Gpu(
        name="B200 SXM",
        capability="10.0",
        multiprocessors=148,  # B
        memory=8000e9,  # B
        l2_bytes=126 << 20,  # T
        shared_bytes=228 << 10,
        warps=64,
        blocks=32,
        tensor=2250e12,  # B
        float32=80e12,  # B
        fp8=4500e12,  # B
    ),
    "rtx4090": Gpu(
        name="GeForce RTX 4090",
        capability="8.9",
        multiprocessors=128,  # L
        memory=1008e9,  # L
        l2_bytes=72 << 20,  # L
        shared_bytes=100 << 10,
        warps=48,
        blocks=24,
        tensor=165.2e12,  # L, with sums in float32
        float32=82.6e12,  # L
        fp8=330.3e12,  # L, with sums in float32
    ),
    "rtx5090": Gpu(
        name="GeForce RTX 5090",
        capability="12.0",
        multiprocessors=170,  # G
        memory=1792e9,  # G
        l2_bytes=96 << 20,  # G
        shared_bytes=100 << 10,
        warps=48,
        blocks=24,
        tensor=209.5e12,  # G, with sums in float32
        float32=104.8e12,  # G
        fp8=419e12,  # G, with sums in float32
        # G on 8 bits with sums in float16. With block scales, sums in float32 are as fast, as mmapeak measured (737e12,
        # main-horse.github.io/posts/5090-mm-perf).
        scaled_fp8=838e12,
        scaled_fp4=1676e12,  # G
    ),
    "rtxpro6000": Gpu(
        name="RTX PRO 6000 Blackwell",
        capability="12.0",
        multiprocessors=188,  # P
        memory=1792e9,  # P
        l2_bytes=128 << 20,  # P
        shared_bytes=100 << 10,
        warps=48,
        blocks=24,
        tensor=503.8e12,  # P, with sums in float32
        float32=126e12,  # P
        fp8=1007.6e12,  # P, with sums in float32
        scaled_fp8=1007.6e12,  # P
        scaled_fp4=2015.2e12,  # P
    ),
}
"""The known GPUs, by the names that ``moec inspect --gpu`` takes."""

GPU_OF = {"sm_80": "a100", "sm_89": "rtx4090", "sm_90a": "h100", "sm_100": "b200", "sm_100a": "b200"}
GPU_OF |= {"sm_120": "rtx5090", "sm_120a": "rtx5090"}
"""The default GPU of an architecture."""


def gpu_called(name: str) -> Gpu:
    """The GPU of that name. Raises MoecError for a name that is not in :data:`GPUS`."""
    if name not in GPUS:
        raise MoecError(f"GPU {name[:40]!r} is unknown; expected one of {', '.join(GPUS)}")
    return GPUS[name]


def _rounded_up(count: int, unit: int) -> int:
    return -(-count // unit) * unit
