"""Blocks of a multiprocessor, by the rules of NVIDIA's occupancy calculator."""

from __future__ import annotations

import pytest

from moec.targets.cuda.architectures import FP8
from moec.targets.cuda.launch_model.gpus import GPUS
from moec.targets.cuda.launch_model.occupancy import Occupancy, occupancy


@pytest.mark.parametrize(
    ("gpu", "threads", "registers", "shared", "expected"),
    [
        # 32 registers of 2048 threads are all there are.
        ("h100", 1024, 32, 0, Occupancy(2, 64, "registers and warps")),
        # 33 * 32 are given as 1280: 51 warps would have room, 48 in fours, and a block has 32.
        ("h100", 1024, 33, 0, Occupancy(1, 32, "registers")),
        # 40 * 32 are 1280: 48 of 51 warps, 12 blocks of four; in units of a single warp they would be 12, too.
        ("a100", 128, 40, 0, Occupancy(12, 48, "registers")),
        # 168 * 32 are 5376: 12 warps; 196,672 bytes and 1,024 leave no room for a second block.
        ("h100", 384, 168, 196672, Occupancy(1, 12, "registers and shared memory")),
        # 255 registers are given as 256: 8 warps.
        ("a100", 256, 255, 0, Occupancy(1, 8, "registers")),
        # Two blocks of 82 KiB would fill 164 KiB, but for the 1 KiB of each that is the system's.
        ("a100", 128, 32, 82 << 10, Occupancy(1, 4, "shared memory")),
        ("a100", 128, 32, 81 << 10, Occupancy(2, 8, "shared memory")),
        # 100 bytes and 1,024 are given as 1,152.
        ("rtx4090", 32, 16, 100, Occupancy(24, 24, "blocks")),
        ("rtx4090", 256, 32, 0, Occupancy(6, 48, "warps")),
        ("h100", 32, 16, 0, Occupancy(32, 32, "blocks")),
        # A block that cannot be launched.
        ("rtx4090", 128, 32, 100 << 10, Occupancy(0, 0, "shared memory")),
    ],
)
def test_blocks_at_once(gpu, threads, registers, shared, expected):
    assert occupancy(GPUS[gpu], threads, registers, shared) == expected


def test_units_of_shared_memory():
    """100 blocks of 1 KiB and nothing else would fit into 100 KiB; 128 bytes more each make 50 of 2 KiB less."""
    assert occupancy(GPUS["rtx4090"], 32, 16, 3 << 10).blocks == 24
    assert occupancy(GPUS["rtx4090"], 32, 16, (4 << 10) - 128).blocks == 20
    assert occupancy(GPUS["rtx4090"], 32, 16, (4 << 10) - 127).blocks == 20
    assert occupancy(GPUS["rtx4090"], 32, 16, (4 << 10) + 1).blocks == 19


def test_numbers_of_8_bits_take_the_older_instruction_as_long_as_16_where_there_is_a_newer_one():
    h100, ada = GPUS["h100"], GPUS["rtx4090"]
    assert h100.tensor_rate(FP8, "wgmma") > 1.9 * h100.tensor_rate("bfloat16", "wgmma")
    assert h100.tensor_rate(FP8, "mma") == h100.tensor_rate("bfloat16", "mma") < h100.tensor_rate(FP8, "wgmma")
    assert ada.tensor_rate(FP8, "mma") == ada.peak(FP8, "mma") == pytest.approx(2 * ada.peak("bfloat16", "mma"), 1e-3)
    assert GPUS["a100"].peak(FP8, "mma") == 0
