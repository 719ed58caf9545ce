"""Blocks that a multiprocessor holds, by the rules of NVIDIA's occupancy calculator, and peaks of GPUs."""

from __future__ import annotations

import pytest

from moec.targets.cuda.estimates.gpus import GPUS, Occupancy
from moec.targets.gpu.constants import FP8


@pytest.mark.parametrize(
    ("gpu", "threads", "registers", "shared", "expected"),
    [
        # 2048 threads with 32 registers each use all registers.
        ("h100", 1024, 32, 0, Occupancy(2, 64, "registers and warps")),
        # 33 * 32 registers are rounded up to 1280: 51 warps would fit, 48 in multiples of four; a block has 32.
        ("h100", 1024, 33, 0, Occupancy(1, 32, "registers")),
        # 40 * 32 registers are 1280: 48 of 51 warps, which are 12 blocks of four warps.
        ("a100", 128, 40, 0, Occupancy(12, 48, "registers")),
        # 168 * 32 registers are 5376: 12 warps. 196,672 + 1,024 bytes leave no room for a second block.
        ("h100", 384, 168, 196672, Occupancy(1, 12, "registers and shared memory")),
        # 255 registers are rounded up to 256: 8 warps.
        ("a100", 256, 255, 0, Occupancy(1, 8, "registers")),
        # Two blocks of 82 KiB would fill 164 KiB exactly, but the system takes 1 KiB of each.
        ("a100", 128, 32, 82 << 10, Occupancy(1, 4, "shared memory")),
        ("a100", 128, 32, 81 << 10, Occupancy(2, 8, "shared memory")),
        # 100 + 1,024 bytes are rounded up to 1,152.
        ("rtx4090", 32, 16, 100, Occupancy(24, 24, "blocks")),
        ("rtx4090", 256, 32, 0, Occupancy(6, 48, "warps")),
        ("h100", 32, 16, 0, Occupancy(32, 32, "blocks")),
        # This block cannot be launched.
        ("rtx4090", 128, 32, 100 << 10, Occupancy(0, 0, "shared memory")),
    ],
)
def test_blocks_at_once(gpu, threads, registers, shared, expected):
    assert GPUS[gpu].occupancy(threads, registers, shared) == expected


@pytest.mark.parametrize(
    ("columns", "expected"),
    [(0, (3, "registers")), (128, (3, "registers")), (256, (2, "tensor memory")), (512, (1, "tensor memory"))],
)
def test_tensor_memory_limits_blocks(columns, expected):
    """A multiprocessor has 512 columns, and registers for 3 blocks of 9 warps with 72 registers: 24 of 28 warps."""
    fits = GPUS["b200"].occupancy(256, 80, 0, columns)
    assert (fits.blocks, fits.limit) == expected


def test_units_of_shared_memory():
    """Shared memory is allocated in units of 128 bytes, after 1 KiB for the system is added."""
    assert GPUS["rtx4090"].occupancy(32, 16, 3 << 10).blocks == 24
    assert GPUS["rtx4090"].occupancy(32, 16, (4 << 10) - 128).blocks == 20
    assert GPUS["rtx4090"].occupancy(32, 16, (4 << 10) - 127).blocks == 20
    assert GPUS["rtx4090"].occupancy(32, 16, (4 << 10) + 1).blocks == 19


def test_peaks_by_arithmetic():
    h100, ada, a100 = (GPUS[name].roofline for name in ("h100", "rtx4090", "a100"))
    assert h100.peak("bfloat16") == h100.peak("float16") == 2 * h100.peak("tf32") > h100.peak("float32")
    assert h100.peak(FP8) == pytest.approx(2 * h100.peak("bfloat16"), 1e-3)
    assert ada.peak(FP8) == pytest.approx(2 * ada.peak("bfloat16"), 1e-3)
    geforce, pro = (GPUS[name].roofline for name in ("rtx5090", "rtxpro6000"))
    assert pro.peak("bfloat16") > 2 * geforce.peak("bfloat16"), "GeForce adds up in float32 at half the rate"
    assert geforce.peak("nvfp4") == geforce.peak("mxfp4") == 2 * geforce.peak("mxfp8") == 4 * geforce.peak(FP8)
    assert ada.peak("mxfp8") == ada.peak("float32"), "it has no such instruction"
    # A GPU whose tensor cores do not multiply 8 bits widens them.
    assert a100.peak(FP8) == a100.peak("float32")
