"""Sorting the pairs by expert, in the emulator."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tvm
from tvm import tirx

from moec.targets.cuda.launches import static_shared_bytes
from moec.targets.gpu.kernels import dispatch, dispatch_many
from moec.targets.gpu.kernels.dispatch_many import MOST_CHUNKS, chunk_pairs, chunks_for
from moec.targets.gpu.kernels.launch import SHARED_BYTES

from ....products import thinned
from ...cuda.kernels.kernel_runner import Kernel, build
from ...cuda.kernels.layers import sort_pairs

RANDOM = np.random.default_rng(0)
CHUNK_PAIRS = chunk_pairs(0)
"""Pairs of a chunk if there are few pairs in all."""
MANY = MOST_CHUNKS * CHUNK_PAIRS
TOKENS = (0, 1, 7, 64, 300)


def expected_order(experts: int, block_rows: int, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The parts of ``sorted_pairs`` and ``block_experts`` that are in use, in numpy."""
    places: list[int] = []
    blocks: list[int] = []
    for expert in range(experts):
        pairs = np.flatnonzero(ids == expert).tolist()
        count = -(-len(pairs) // block_rows)
        places += pairs + [dispatch.PADDING] * (count * block_rows - len(pairs))
        blocks += [expert] * count
    return np.array(places, np.int32), np.array(blocks, np.int32)


def sort_in_chunks(experts: int, block_rows: int, ids: np.ndarray) -> list[np.ndarray]:
    """``sorted_pairs``, ``block_experts`` and ``block_count`` by three launches; -7 where nothing was written."""
    blocks, chunks = dispatch.most_blocks(experts, ids.size, block_rows), dispatch_many.chunks_for(ids.size)
    counts, *outputs = [np.full(size, -7, np.int32) for size in ((chunks, experts), blocks * block_rows, blocks, 1)]
    count, place, scatter = _kernels(experts, block_rows)
    counts = count(ids, counts)
    starts, sorted_pairs, *others = place.outputs(4, ids, counts, np.full_like(counts, -7), *outputs)
    return [scatter(ids, starts, sorted_pairs), *others]


@functools.cache
def _kernels(experts: int, block_rows: int) -> list[Kernel]:
    kernels = dispatch_many.count_pairs(experts), dispatch_many.place_chunks(experts, block_rows)
    return [build(kernel) for kernel in (*kernels, dispatch_many.scatter_pairs(experts))]


def check(experts: int, block_rows: int, ids: np.ndarray) -> None:
    sorted_pairs, block_experts, block_count = sort_pairs(experts, block_rows, ids)
    places, blocks = expected_order(experts, block_rows, ids)
    assert block_count[0] == len(blocks) <= len(block_experts)
    np.testing.assert_array_equal(block_experts[: len(blocks)], blocks)
    np.testing.assert_array_equal(sorted_pairs[: len(places)], places)
    assert (block_experts[len(blocks) :] == -7).all() and (sorted_pairs[len(places) :] == -7).all()


@thinned("experts, slots, block_rows", [(256, 8, 16), (8, 2, 16), (3, 1, 128), (512, 4, 64)], 2)
def test_pairs_are_sorted_by_expert(experts, slots, block_rows):
    for tokens in TOKENS:
        # Some ids are not an expert's: -1, and those of identity experts.
        check(experts, block_rows, RANDOM.integers(-1, experts + 2, (tokens, slots)))


@pytest.mark.parametrize("expert", [0, 31])
def test_all_tokens_to_one_expert(expert):
    check(32, 64, np.full((300, 2), expert))


def test_no_pair_has_an_expert():
    check(32, 64, np.full((7, 2), -1))


def test_the_bound_on_blocks_is_reached():
    ids = np.arange(64).reshape(32, 2)
    assert dispatch.most_blocks(64, ids.size, 16) == 64
    check(64, 16, ids)


@pytest.mark.parametrize("experts", [361, 2048, 4095])
def test_what_dispatch_shares_fits(experts):
    assert dispatch.why_not(experts) is None
    assert static_shared_bytes(dispatch.dispatch(experts, 16)) <= SHARED_BYTES


def test_more_experts_than_counts_have_room():
    assert "4096 experts" in dispatch.why_not(4096)


@pytest.mark.parametrize(
    "experts, block_rows, shapes", [(256, 16, [(150, 8)]), (5, 64, [(0, 2), (CHUNK_PAIRS // 2, 2), (MANY + 1, 1)])]
)
def test_three_launches_do_the_same_as_one(experts, block_rows, shapes):
    calls = [RANDOM.integers(-1, experts + 2, shape) for shape in shapes]
    for ids in [*calls, np.full((200, 3), 2)]:
        in_chunks = sort_in_chunks(experts, block_rows, ids.astype(np.int32))
        for in_chunk, other in zip(in_chunks, sort_pairs(experts, block_rows, ids), strict=True):
            np.testing.assert_array_equal(in_chunk, other)


@pytest.mark.parametrize(
    "pairs, chunks",
    [(0, 1), (1, 1), (CHUNK_PAIRS, 1), (CHUNK_PAIRS + 1, 2), (MANY, MOST_CHUNKS), (MANY + 1, MOST_CHUNKS // 2 + 1)],
)
def test_tables_have_a_row_for_every_chunk_and_no_more(pairs, chunks):
    """The number of chunks is the same whether the number of pairs is known at compile time or only at run time."""
    analyzer, number = tvm.sym.Analyzer(), tirx.Var("pairs", "int64")
    analyzer.bind(number, tirx.IntImm("int64", pairs))
    assert chunks_for(pairs) == int(analyzer.simplify(chunks_for(number))) == chunks
