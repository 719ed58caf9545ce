"""Occupancy: the number of blocks of threads that a multiprocessor holds at once, by NVIDIA's occupancy calculator.

Registers are allocated to warps in units of 256, and each of the four schedulers holds the same number of warps. Shared
memory is allocated to blocks in units of 128 bytes, and the system takes 1 KiB per block (compute capability 8.0 and
up).
"""

from __future__ import annotations

import dataclasses

from moec.targets.cuda.architectures import WARP
from moec.targets.cuda.launch_model.gpus import Gpu

_REGISTER_UNIT = 256
_WARP_UNIT = 4
_SHARED_UNIT = 128
_RESERVED_SHARED = 1024


@dataclasses.dataclass(frozen=True)
class Occupancy:
    """The ``blocks`` and ``warps`` that a multiprocessor holds at once. ``limit``: the resource that allows no more,
    ``registers``, ``shared memory``, ``warps`` or ``blocks``, or several of them joined by "and"."""

    blocks: int
    warps: int
    limit: str


def occupancy(gpu: Gpu, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """The occupancy for blocks of ``threads`` threads with ``registers`` registers each and ``shared_bytes`` of shared
    memory; 0 blocks if not even one fits."""
    warps = -(-threads // WARP)
    registers_of_warp = _rounded_up(max(registers, 1) * WARP, _REGISTER_UNIT)
    by_registers = gpu.registers // registers_of_warp // _WARP_UNIT * _WARP_UNIT // warps
    by_shared = gpu.shared_bytes // _rounded_up(shared_bytes + _RESERVED_SHARED, _SHARED_UNIT)
    most_blocks = {
        "registers": by_registers,
        "shared memory": by_shared,
        "warps": gpu.warps // warps,
        "blocks": gpu.blocks,
    }
    blocks = min(most_blocks.values())
    limits = [name for name, most in most_blocks.items() if most == blocks]
    return Occupancy(blocks, blocks * warps, " and ".join(limits))


def _rounded_up(count: int, unit: int) -> int:
    return -(-count // unit) * unit
