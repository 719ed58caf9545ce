"""How many blocks of threads a multiprocessor holds at once: the rules of NVIDIA's occupancy calculator.

Registers are given to warps in units of 256, and to as many warps by each of the four schedulers; shared memory is
given to blocks in units of 128 bytes, and 1 KiB of each block's is the system's (compute capability 8.0 and up).
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
    """``blocks`` of a multiprocessor at once, and what keeps it from more: ``registers``, ``shared memory``, ``warps``,
    ``blocks``, or several of them."""

    blocks: int
    warps: int
    limit: str


def occupancy(gpu: Gpu, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """Of blocks of so many threads with so many registers each, and so much shared memory; no blocks where one does
    not fit."""
    warps = -(-threads // WARP)
    registers_of_warp = _rounded_up(max(registers, 1) * WARP, _REGISTER_UNIT)
    by_registers = gpu.registers // registers_of_warp // _WARP_UNIT * _WARP_UNIT // warps
    by_shared = gpu.shared_bytes // _rounded_up(shared_bytes + _RESERVED_SHARED, _SHARED_UNIT)
    found = {
        "registers": by_registers,
        "shared memory": by_shared,
        "warps": gpu.warps // warps,
        "blocks": gpu.blocks,
    }
    blocks = min(found.values())
    limits = [name for name, most in found.items() if most == blocks]
    return Occupancy(blocks, blocks * warps, " and ".join(limits))


def _rounded_up(count: int, unit: int) -> int:
    return -(-count // unit) * unit
