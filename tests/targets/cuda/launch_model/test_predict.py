"""The formulas of predictions, on a GPU with round figures: cycles of blocks, bytes, waves, and limits of launches."""

from __future__ import annotations

import dataclasses

import pytest

from moec.targets.cuda.launch_model.cycles import LATENCY, BlockCycles, stream_cycles, tile_cycles, warp_cycles
from moec.targets.cuda.launch_model.gpus import LAUNCH_SECONDS, Gpu
from moec.targets.cuda.launch_model.loops import Issued
from moec.targets.cuda.launch_model.plans import MemoryBoundPlan, ProductPlan, TilePlan, WarpPlan
from moec.targets.cuda.launch_model.predict import MEMORY, LaunchFacts, predict
from moec.targets.cuda.launch_model.rows import RowSpread
from moec.targets.cuda.launch_model.traffic import Traffic, own_share, tile_traffic, warp_traffic

GPU = Gpu(
    name="even",
    capability="9.0",
    multiprocessors=10,
    clock=1e9,
    memory_peak=2e12,
    memory_reached=1e12,
    l2_bytes=1 << 20,
    l2_reached=1e12,  # 100 bytes per cycle and multiprocessor
    shared_bytes=228 << 10,
    warps=64,
    blocks=32,
    tensor_peak=2e13,
    tensor_reached=1e13,  # 1000 operations per cycle and multiprocessor
    float32_peak=1e12,
    l2_cycles=100,
    memory_cycles=500,
)
PRODUCT = ProductPlan(4, 256, 64, 64, "bfloat16", 16.0, 2, 2, gathered=True)
TILE = TilePlan(PRODUCT, rows=16, columns=32, inputs=64, stages=3, unit="mma")
TENSOR = 4 * 2 * 16 * 32 * 64 / 1000
K_TILES = 4 * 3 * 30
FIRST, END = 2 * 100 + 500, 16 * 32 * 2 / 100


def test_a_tile_waits_for_memory_or_is_busy_with_products():
    cycles = tile_cycles(TILE, GPU, None, from_memory=True)
    assert cycles.busy == pytest.approx({"tensor cores": TENSOR, "L2": 4 * (16 + 32) * 64 * 2 / 100})
    # Two k-tiles arrive per latency of memory, so four take 1000 cycles.
    assert cycles.waits == pytest.approx(1000 - TENSOR + FIRST + END)
    assert cycles.together(1) == (pytest.approx(1000 + FIRST + END), LATENCY)
    assert cycles.together(10) == (pytest.approx(10 * TENSOR), "tensor cores")


def test_what_changes_the_cycles_of_a_tile():
    issued = Issued(per_step=600, once=4000)
    cycles = tile_cycles(TILE, GPU, issued, from_memory=False)
    assert cycles.busy["issue slots"] == 4 * 600 / 4
    decoding = dataclasses.replace(issued, integers=400, floats=100, copying=300)
    cycles = tile_cycles(TILE, GPU, decoding, from_memory=False)
    assert cycles.busy["integer units"] == 4 * 400 * 32 / 64
    assert cycles.busy["float units"] == 4 * 100 * 32 / 50
    assert cycles.busy["copying warps"] == 4 * 300 * 2
    assert cycles.waits == pytest.approx(K_TILES + 2 * 100 + 100 + 4000 / 4)
    copied = dataclasses.replace(TILE, copying_warps=4)
    assert tile_cycles(copied, GPU, issued, from_memory=False).waits == pytest.approx(2 * 100 + 100 + 4000 / 4)
    persistent = dataclasses.replace(TILE, persistent=True)
    assert tile_cycles(persistent, GPU, issued, from_memory=False).waits == K_TILES + 4000 / 4
    in_turns = dataclasses.replace(persistent, groups=2)
    assert tile_cycles(in_turns, GPU, issued, from_memory=False).waits == K_TILES
    clustered = dataclasses.replace(TILE, cluster=2)
    shared = tile_cycles(clustered, GPU, None, own_share=0.5, from_memory=True)
    assert shared.busy["L2"] == 4 * (16 + 32 / 2) * 64 * 2 / 100
    slow = dataclasses.replace(GPU, mma_share=0.5)
    assert tile_cycles(TILE, slow, None, from_memory=True).busy["tensor cores"] == 2 * TENSOR
    packed = dataclasses.replace(TILE, product=dataclasses.replace(PRODUCT, weight_bits=4.5))
    assert tile_cycles(packed, GPU, None, from_memory=True).busy["L2"] == 4 * 64 * (16 * 2 + 32 * 4.5 / 8) / 100


def test_warps_wait_step_by_step():
    plan = WarpPlan(dataclasses.replace(PRODUCT, inner=1024), warps=4, columns=4, inputs=8)
    cycles = warp_cycles(plan, GPU, None)
    moved = 16 * 1024 * 2 + 4 * 1024 * 2
    assert cycles.busy == pytest.approx({"L2": moved / 100, "float units": 16 * 1024 / 50})
    assert cycles.waits == pytest.approx(4 * 500 - moved / 100 + 100 + 150)
    ahead = dataclasses.replace(plan, ahead=2)
    assert warp_cycles(ahead, GPU, None).waits == pytest.approx(1000 - moved / 100 + 100 + 150)


def test_threads_of_a_stream_wait_for_so_many_loads():
    cycles = stream_cycles(MemoryBoundPlan(("x",), ("y",), 16, 2), GPU, 128, 20000.0, 16384.0, from_memory=True)
    assert cycles == BlockCycles({"L2": 200.0}, 100 + 4 * 500)


@pytest.mark.parametrize(
    ("pairs", "experts", "rows", "used", "blocks"),
    [(3, 8, 16, 3, 3), (8, 8, 16, 8, 8), (10, 4, 2, 4, 6), (128, 4, 16, 4, 8), (0, 4, 16, 0, 0)],
)
def test_an_even_spread(pairs, experts, rows, used, blocks):
    spread = RowSpread(pairs, experts)
    assert (spread.used, spread.blocks(rows)) == (used, blocks)


def test_bytes_of_tiles():
    matrix, row, result = 64 * 256 * 2, 512, 128
    # Each of four experts has two rows. Input and results stay in the cache; matrices are read once, rows by both
    # tiles.
    expected = Traffic(4 * matrix, 4 * matrix + 2 * 8 * row + 8 * result)
    assert tile_traffic(TILE, GPU, RowSpread(8, 4), 4) == expected
    # In a cache of 64 KiB, a matrix stays for the expert's next block, but 2048 rows and their results do not.
    small = dataclasses.replace(GPU, l2_bytes=1 << 16)
    many = tile_traffic(TILE, small, RowSpread(2048, 4), 1024)
    assert many == Traffic(4 * matrix + 2048 * row + 2048 * result, 128 * matrix + 2 * 2048 * row + 2048 * result)
    tiny = dataclasses.replace(GPU, l2_bytes=matrix)
    assert tile_traffic(TILE, tiny, RowSpread(2048, 4), 1024).memory - many.memory == (128 - 4) * matrix


def test_tiles_at_the_same_time_share_what_no_cache_holds():
    """Eight blocks of rows are multiplied with one matrix, which is two tiles wide."""
    small = dataclasses.replace(GPU, l2_bytes=1 << 10)
    one = dataclasses.replace(TILE, product=dataclasses.replace(PRODUCT, experts=1))
    rest = (128 * 512 + 128 * 128,)

    def matrices(plan: TilePlan, together: int) -> float:
        return (tile_traffic(plan, small, RowSpread(128, 1), 128, together).memory - sum(rest)) / 32768

    assert [matrices(one, together) for together in (1, 2, 4, 6, 16)] == [8, 8, 4, 3, 1]
    assert matrices(dataclasses.replace(one, band=4), 2) == 2


def test_bytes_of_pairs_that_read_their_matrices_themselves():
    plan = WarpPlan(PRODUCT, warps=4, columns=4, inputs=8)
    found = warp_traffic(plan, GPU, RowSpread(8, 4), 4)
    assert found == Traffic(4 * 32768, 8 * (32768 + 16 * 512) + 8 * 128)
    tiny = dataclasses.replace(GPU, l2_bytes=32768)  # does not hold a matrix until the next pair reads it
    together = dataclasses.replace(plan, side_by_side=True)
    assert warp_traffic(together, tiny, RowSpread(8, 4), 4) == found
    assert warp_traffic(plan, tiny, RowSpread(8, 4), 4) == dataclasses.replace(found, memory=8 * 32768)


FACTS = LaunchFacts(blocks=20, threads=128, registers=32, shared_bytes=100 << 10)


def test_a_launch_in_waves():
    """256 tiles on 10 multiprocessors, which hold two blocks each, take 13 waves."""
    many = dataclasses.replace(TILE, product=dataclasses.replace(PRODUCT, columns=128, width=128))
    found = predict(many, GPU, dataclasses.replace(FACTS, blocks=276), RowSpread(1024, 4), 512)
    assert (found.occupancy.blocks, found.blocks, found.waves) == (2, 256, 13)
    assert found.tail == 256 / 260
    # After its first block an expert's matrix is in the cache, so the ring waits for the cache only. In the last wave
    # six multiprocessors have two blocks.
    alone = TENSOR + K_TILES + 3 * 100 + END
    assert found.seconds == pytest.approx((13 * max(2 * TENSOR, alone) + 20 / 20 * 100) / 1e9 + LAUNCH_SECONDS)
    assert found.operations == 2 * 1024 * 128 * 256
    assert found.roofline == pytest.approx(found.operations / 2e13 / found.seconds)


def test_a_launch_of_little_waits_for_the_cache_alone():
    facts = dataclasses.replace(FACTS, blocks=1, bytes_read=128.0, bytes_written=128.0)
    found = predict(MemoryBoundPlan(("x",), ("y",), 4), GPU, facts, RowSpread(0, 1), 1)
    assert (found.limit, found.traffic.memory) == (LATENCY, 0)
    assert found.seconds == pytest.approx((2.56 + 2 * 100) / 1e9 + LAUNCH_SECONDS)


def test_a_launch_that_memory_limits():
    slow = dataclasses.replace(GPU, memory_reached=1e10)
    found = predict(TILE, slow, FACTS, RowSpread(4, 4), 4)
    assert (found.limit, found.traffic.memory) == (MEMORY, 4 * 32768)
    assert found.seconds == pytest.approx(4 * 32768 / 1e10 + 500e-9 + LAUNCH_SECONDS)
    assert found.roofline == pytest.approx((4 * 32768 + 4 * 512 + 4 * 128) / 2e12 / found.seconds)


def test_blocks_of_a_cluster_share_the_matrix_of_one_expert():
    clustered = dataclasses.replace(TILE, cluster=2)
    assert own_share(TILE, RowSpread(1000, 1)) == own_share(clustered, RowSpread(4, 4)) == 1
    assert own_share(clustered, RowSpread(4 * TILE.rows, 1)) == 1 - 0.5 * 3 / 4
    assert own_share(clustered, RowSpread(0, 4)) == 1


def test_blocks_of_threads_that_have_parts_of_the_inputs():
    product = dataclasses.replace(PRODUCT, experts=1, out_bytes=4)
    half = dataclasses.replace(TILE, product=dataclasses.replace(product, inner=128))
    divided = dataclasses.replace(TILE, product=product, divides_inputs=True)
    one, both = (
        predict(plan, GPU, LaunchFacts(blocks, 128, 64, 1 << 14), RowSpread(32, 1), 32)
        for plan, blocks in ((half, 4), (divided, 8))
    )
    assert (one.blocks, both.blocks, both.waves) == (4, 8, 1)
    assert both.seconds == one.seconds and both.operations == 2 * one.operations
    assert both.traffic.l2 == 2 * one.traffic.l2
