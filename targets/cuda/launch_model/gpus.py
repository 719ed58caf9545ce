"""Published figures of GPUs, by NVIDIA or measured by others. moec measured none of them.

Sources, with the abbreviations used below:

A     NVIDIA A100 Tensor Core GPU Architecture (white paper, 2020), and its data sheet for 80 GB SXM.
H     NVIDIA H100 Tensor Core GPU Architecture (white paper, 2022), and its data sheet for SXM.
L     NVIDIA Ada GPU Architecture (white paper, 2022), appendix on GeForce RTX 4090.
C     CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
MAMF  S. Bekman, Machine Learning Engineering, "Maximum Achievable Matmul FLOPS": the best that was found over shapes.
GB    te42kyfo/gpu-benches, gpu-l2-cache (a100_80.txt, h200.txt) and gpu-stream.
MT4G  The MT4G tool's report on an H100 80GB HBM3.
LAT   M. Dewing, AI_kernels, latency/README.md (RTX 4090, GH200).
DG    DeepSeek, DeepGEMM, README: products in fp8 with scales for groups of 128 inputs, at best, on an H800.
MMA   Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture", 2024: mma.sync on Hopper.
PDL   pegainfer, issue 569: two empty kernels in a graph on Hopper, with and without programmatic dependent launch.
CP    smallscientist1/cuda_microbenchmark, analysis_RTX4090.md: cp.async from the second-level cache.
"""

from __future__ import annotations

import dataclasses

from moec.common.errors import MoecError
from moec.targets.cuda.architectures import FP8


@dataclasses.dataclass(frozen=True)
class Gpu:
    """The figures of a GPU. Bandwidths are bytes per second; ``*_peak`` are as published by NVIDIA, ``*_reached`` the
    best that others measured."""

    name: str
    capability: str
    multiprocessors: int
    clock: float
    """Cycles per second that the published peaks assume."""
    memory_peak: float
    memory_reached: float
    l2_bytes: int
    l2_reached: float
    """Bandwidth of the second-level cache when all multiprocessors read."""
    shared_bytes: int
    """Shared memory of a multiprocessor, for all of its blocks, including what the system reserves (C)."""
    warps: int
    """The most warps that a multiprocessor holds (C)."""
    blocks: int
    """The most blocks that a multiprocessor holds (C)."""
    tensor_peak: float
    """Operations per second on 16-bit floats with sums in float32, dense."""
    tensor_reached: float
    float32_peak: float
    l2_cycles: int
    """Latency of a load that hits the second-level cache."""
    memory_cycles: int
    """Latency of a load from memory."""
    fp8_peak: float = 0.0
    """Operations per second on 8-bit floats with sums in float32, dense; 0 if the GPU cannot multiply them."""
    fp8_reached: float = 0.0
    mma_share: float = 1.0
    """The share of the peak that ``mma.sync`` reaches, on GPUs with a newer instruction."""
    registers: int = 65536
    """Registers of a multiprocessor (C)."""
    issue_slots: int = 4
    """Instructions of warps that a multiprocessor issues in a cycle, one for each of its schedulers (A, H, L)."""

    integer_lanes: int = 64
    """Integers that a multiprocessor adds, shifts or converts in a cycle (C, "Arithmetic Instructions")."""

    @property
    def float_lanes(self) -> float:
        """Multiply-adds of a multiprocessor in a cycle."""
        return self.float32_peak / 2 / self.clock / self.multiprocessors

    def tensor_rate(self, dtype: str, unit: str) -> float:
        """Operations per second that ``unit`` (``wgmma``, ``mma``, or ``fma`` without tensor cores) reaches."""
        if unit == "fma":
            return self.float32_peak
        if dtype == FP8 and (unit == "wgmma" or self.mma_share == 1.0):
            return self.fp8_reached
        # On GPUs with a newer instruction, the older one multiplies 8 bits at the rate of 16 bits (nvcc 13.0).
        share = 0.5 if dtype == "float32" else 1.0  # the rate of tf32 is half of that of 16 bits (A, H, L)
        return self.tensor_reached * share * (self.mma_share if unit == "mma" else 1.0)

    def peak(self, dtype: str, unit: str) -> float:
        """Published operations per second of the best unit for that type; ``unit`` matters only if it is ``fma``."""
        if unit == "fma":
            return self.float32_peak
        if dtype == FP8:
            return self.fp8_peak
        return self.tensor_peak * (0.5 if dtype == "float32" else 1.0)

    @property
    def l2_bytes_per_cycle(self) -> float:
        """Bytes per cycle that one multiprocessor reads from the second-level cache while all of them read."""
        return self.l2_reached / self.clock / self.multiprocessors


GPUS = {
    "a100": Gpu(
        name="A100 SXM 80GB",
        capability="8.0",
        multiprocessors=108,  # A
        clock=1.410e9,  # A
        memory_peak=2039e9,  # A
        memory_reached=1730e9,  # GB, read
        l2_bytes=40 << 20,  # A
        l2_reached=5400e9,  # GB; A says 5120 bytes per cycle, which are 7219
        shared_bytes=164 << 10,
        warps=64,
        blocks=32,
        tensor_peak=312e12,  # A
        tensor_reached=271.2e12,  # MAMF
        float32_peak=19.5e12,  # A
        l2_cycles=260,  # assumed to be about those of the others
        memory_cycles=600,  # likewise
    ),
    "h100": Gpu(
        name="H100 SXM",
        capability="9.0",
        multiprocessors=132,  # H
        clock=1.830e9,  # H: at which 132 multiprocessors make 989.4 TFLOP/s; it may rise to 1.98 GHz
        memory_peak=3352e9,  # H
        memory_reached=3013e9,  # MT4G, written; it read 2750
        l2_bytes=50 << 20,  # H
        l2_reached=9750e9 * 1.830 / 1.980,  # GB on an H200, which has the same multiprocessors, at 1.98 GHz
        shared_bytes=228 << 10,
        warps=64,
        blocks=32,
        tensor_peak=989.4e12,  # H
        tensor_reached=794.5e12,  # MAMF: power keeps the clock down
        float32_peak=66.9e12,  # H
        l2_cycles=281,  # LAT, on a GH200
        memory_cycles=690,  # LAT, likewise; MT4G says 834
        fp8_peak=1978.9e12,  # H
        fp8_reached=1550e12,  # DG
        mma_share=0.629,  # MMA
    ),
    "rtx4090": Gpu(
        name="GeForce RTX 4090",
        capability="8.9",
        multiprocessors=128,  # L
        clock=2.520e9,  # L
        memory_peak=1008e9,  # L
        memory_reached=907e9,  # assumed: 90% of the peak
        l2_bytes=72 << 20,  # L
        l2_reached=4903e9,  # CP
        shared_bytes=100 << 10,
        warps=48,
        blocks=24,
        tensor_peak=165.2e12,  # L, with sums in float32
        tensor_reached=165.2e12,  # nothing lower is known
        float32_peak=82.6e12,  # L
        l2_cycles=296,  # LAT
        memory_cycles=636,  # LAT
        fp8_peak=330.3e12,  # L, with sums in float32
        fp8_reached=330.3e12,  # nothing lower is known
    ),
}
"""The known GPUs, by the names that ``moec inspect --gpu`` takes."""

GPU_OF = {"sm_80": "a100", "sm_89": "rtx4090", "sm_90a": "h100"}
"""The default GPU of an architecture."""
SPECIAL_LANES = 16
"""Exponentials that a multiprocessor computes in a cycle (C, "Arithmetic Instructions", for 8.0 to 9.0)."""
SHARED_CYCLES = 30
"""Latency of a load from shared memory (MT4G); an exchange between lanes takes about as long."""
LONE_WARP_CYCLES = 2
"""Cycles between instructions of a warp that is alone on its scheduler. This is an assumption: a result can be used
after four cycles, and about two instructions do not depend on one another."""
LAUNCH_SECONDS = 1e-6
"""Time from the end of a kernel to the start of the next one in a captured graph. This is an assumption, since NVIDIA
publishes no figure; an early launch saves at most 0.96 us (PDL)."""
EARLY_TRIPS = 2
"""Trips to the second-level cache from the end of a kernel until a kernel that was launched early goes on: one to write
the results there, one for the waiting kernel to notice. This is an assumption, too."""


def gpu_called(name: str) -> Gpu:
    """The GPU of that name. Raises MoecError for a name that is not in :data:`GPUS`."""
    if name not in GPUS:
        raise MoecError(f"GPU {name[:40]!r} is not known to the model; use one of {', '.join(GPUS)}")
    return GPUS[name]
