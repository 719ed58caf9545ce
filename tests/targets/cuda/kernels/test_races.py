"""Results do not depend on which thread runs first, or on when an asynchronous copy arrives."""

from __future__ import annotations

import numpy as np
import pytest

from moec.ir import semantics
from moec.ir.dialect import RouteSpec
from moec.targets.cuda.kernels.grouped_gemm_mma import grouped_gemm_mma as mma
from moec.targets.cuda.kernels.grouped_gemm_wgmma import grouped_gemm_wgmma as wgmma
from moec.targets.gpu.kernels import dispatch, dispatch_many, expert_choice, route
from moec.targets.gpu.kernels.grouped_gemm_simt import grouped_gemm_simt as simt
from moec.targets.tvm.heavy.route import RouteProblem

from ....products import thinned
from .kernel_runner import build
from .layers import Data, Layer, assert_matches

RANDOM = np.random.default_rng(0)


@pytest.mark.nightly
@thinned("kernel, block_rows, inner", [(simt, 16, 20), (mma, 16, 384), (wgmma, 64, 512)], 3)
def test_accesses_to_shared_memory_are_ordered(kernel, block_rows, inner):
    layer = Layer(experts=2, inner=inner, hidden=128, block_rows=block_rows, dtype="float16")
    assert_matches(Data(layer, RANDOM.integers(0, 2, (9, 2))), kernel, watch=True)


def test_routing_in_order():
    spec = RouteSpec(k=4, score="sigmoid", groups=4, groups_kept=2, group_score="sum_top2", normalize=True)
    logits = RANDOM.standard_normal((5, 40), np.float32)
    outputs = np.zeros((5, 4), np.float32), np.zeros((5, 4), np.int32)
    _, experts = build(route.route(RouteProblem(spec, 40)), watch=True).outputs(2, logits, *outputs)
    np.testing.assert_array_equal(experts, semantics.route(spec, logits)[1])


def test_dispatch_in_order():
    ids = RANDOM.integers(-1, 9, (37, 2)).astype(np.int32)
    blocks = dispatch.most_blocks(8, ids.size, 16)
    outputs = [np.full(size, -7, np.int32) for size in (blocks * 16, blocks, 1)]
    kernel = dispatch.dispatch(8, 16)
    watched, plain = build(kernel, watch=True), build(kernel)
    for output, other in zip(watched.outputs(3, ids, *outputs), plain.outputs(3, ids, *outputs), strict=True):
        np.testing.assert_array_equal(output, other)


@pytest.mark.nightly
def test_dispatch_of_chunks_in_order():
    ids = RANDOM.integers(-1, 9, (2100, 2)).astype(np.int32)
    counts, chunks = dispatch_many.count_pairs(8), dispatch_many.chunks_for(ids.size)
    watched, plain = build(counts, watch=True), build(counts)
    table = np.full((chunks, 8), -7, np.int32)
    counted = watched(ids, table)
    np.testing.assert_array_equal(counted, plain(ids, table))
    outputs = [np.full(size, -7, np.int32) for size in ((chunks, 8), 8192, 512, 1)]
    starts, pairs, *_ = build(dispatch_many.place_chunks(8, 16), watch=True).outputs(4, ids, counted, *outputs)
    pairs = build(dispatch_many.scatter_pairs(8), watch=True)(ids, starts, pairs)
    assert sorted(pairs[pairs >= 0]) == np.flatnonzero((ids >= 0) & (ids < 8)).tolist()


@pytest.mark.nightly
def test_experts_choose_in_order():
    spec = RouteSpec(k=3, selection="expert_choice", capacity=100)
    keys = RANDOM.integers(0, 4, (3, 600)).astype(np.uint32)
    taken = build(expert_choice.take_tokens(RouteProblem(spec, 3)), watch=True)(keys, np.zeros((600, 3), np.int32))
    best = np.sort(np.argsort(-keys.astype(np.int64), axis=1, kind="stable")[:, :100])
    np.testing.assert_array_equal(np.nonzero(taken.T >= 0)[1].reshape(3, 100), best)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "completion, first_thread",
    [
        ("earliest", 77),
        *(pytest.param(*other, marks=pytest.mark.nightly) for other in [("earliest", 0), ("latest", 77)]),
    ],
)
@thinned("kernel, block_rows, inner", [(mma, 64, 384), (wgmma, 64, 512)], 2)
def test_any_schedule(kernel, block_rows, inner, completion, first_thread):
    layer = Layer(experts=2, inner=inner, hidden=128, block_rows=block_rows, dtype="float16")
    data = Data(layer, RANDOM.integers(0, 2, (40, 2)))
    assert_matches(data, kernel, completion=completion, first_thread=first_thread)
