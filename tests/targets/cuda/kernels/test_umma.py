"""The grouped product with sums in tensor memory, of one block of threads and of pairs: any rows, any GPU, any order of
threads, and its machine code."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import re

import numpy as np
import pytest
import tvm

from moec.simulators.cuda.driver import driver_library
from moec.targets.cuda.dense_products import choices
from moec.targets.cuda.estimates.gpus import GPUS
from moec.targets.cuda.grouped_products import heights_on_tensor_cores
from moec.targets.cuda.hardware.architectures import LIMITS
from moec.targets.cuda.kernels.grouped_gemm_umma import ARCHITECTURES, why_not
from moec.targets.cuda.kernels.grouped_gemm_umma import grouped_gemm_umma as umma
from moec.targets.cuda.kernels.umma_tile import HEIGHTS, PAIR_ROWS, umma_tile
from moec.targets.cuda.launches import LaunchRecorder, facts_of
from moec.targets.cuda.nvcc import compile_source, find_disassembler
from moec.targets.cuda.pipeline import lowered_kernels
from moec.targets.gpu.kernels import dispatch
from moec.targets.gpu.kernels.dense_problem import dense_kernel, dense_problem
from moec.targets.gpu.kernels.fp8_rows import FP8
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.gpu.kernels.packed_format import PackedFormat

from ....products import thinned
from .kernel_runner import build, source_of
from .layers import DTYPES, Data, Layer, assert_matches, compute, products, sort_pairs, undefined
from .machine_code import inner_loops, main_loop
from .test_grouped import VARIANTS, random_ids
from .test_quantized import FORMATS, encoded, packed
from .test_wgmma_clusters import routed

BF16 = {"dtype": "bfloat16", "matrix_dtype": "bfloat16", "out_dtype": "bfloat16"}
LAYER = Layer(experts=3, inner=72, hidden=24, block_rows=PAIR_ROWS, dtype="bfloat16")
SPREADS = {
    "odd numbers": routed(129, 7, 257),
    "no token": routed(0, 0, 0),
    "one token": routed(0, 1, 0),
    "all to one expert": routed(0, 0, 555),
    "an expert without tokens": routed(128, 0, 256),
}
MANY = Data(LAYER, SPREADS["odd numbers"])
"""Four tiles of a pair: one has all rows, two have half or less, of which one has a single row."""


@thinned("ids", SPREADS, 5)
def test_any_rows(ids):
    assert_matches(Data(LAYER, SPREADS[ids]), umma)


def test_a_few_rows_in_blocks_of_one_multiprocessor():
    layer = dataclasses.replace(LAYER, block_rows=64)
    for ids in (routed(0, 0, 0), routed(0, 1, 0), routed(65, 0, 7)):
        assert_matches(Data(layer, ids), umma)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("rows", "inner", "hidden", "dtype"),
    [
        (64, 200, 56, "float16"),
        (PAIR_ROWS, 520, 136, "bfloat16"),
        (64, 8, 8, "bfloat16"),
        (PAIR_ROWS, 24, 328, "float16"),
        (PAIR_ROWS, 8, 392, "bfloat16"),
    ],
)
def test_any_size(rows, inner, hidden, dtype):
    """Inputs are no multiple of k-tiles, nor columns of tiles or of the parts that the epilogue takes."""
    layer = Layer(experts=3, inner=inner, hidden=hidden, block_rows=rows, dtype=dtype)
    for ids in (*(random_ids(layer, tokens) for tokens in (0, 1, 100)), np.full((100, 2), 1)):
        assert_matches(Data(layer, ids), umma)


@pytest.mark.nightly
@pytest.mark.parametrize("rows", HEIGHTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_experts(variant, rows):
    layer = Layer(experts=3, inner=128, hidden=128, block_rows=rows, spec=VARIANTS[variant], dtype="float16")
    assert_matches(Data(layer, random_ids(layer, 16)), umma)


@pytest.fixture(scope="module")
def in_turn() -> np.ndarray:
    """The results on two multiprocessors, with warps that run in turn. A pair computes all tiles."""
    return compute(MANY, umma)


@thinned("multiprocessors", [9, *range(1, 9)], 9)
def test_results_do_not_depend_on_the_gpu(monkeypatch, in_turn, multiprocessors):
    number = ctypes.c_int.in_dll(ctypes.CDLL(str(driver_library())), "emulated_multiprocessors")
    monkeypatch.setattr(number, "value", multiprocessors)
    np.testing.assert_array_equal(compute(MANY, umma), in_turn)


@thinned(
    "schedule",
    [
        {"behind": range(9, 18)},  # the block that does not multiply
        {"behind": [8]},  # the warp that multiplies
        {"behind": range(9)},  # its block
        {"behind": range(4)},  # its producer
        {"behind": range(9, 13)},  # the other producer
        {"behind": range(4, 8)},  # its epilogue
        {"behind": range(13, 17)},  # the other epilogue
        {"behind": [5, 14]},
        *({"seed": seed} for seed in range(1, 5)),
    ],
    8,
)
def test_every_order_computes_the_same(in_turn, schedule):
    with contextlib.ExitStack() as stack:
        for kernel in products(LAYER, umma):
            stack.enter_context(kernel.scheduled(**schedule))
        np.testing.assert_array_equal(compute(MANY, umma), in_turn)


@pytest.mark.nightly
@pytest.mark.parametrize("completion", ["earliest", "late copies", "late products"])
def test_results_do_not_depend_on_when_asynchronous_work_is_complete(in_turn, completion):
    np.testing.assert_array_equal(compute(MANY, umma, completion=completion), in_turn)


@pytest.mark.nightly
@pytest.mark.parametrize("ids", SPREADS)
def test_accesses_to_memory_are_ordered(ids):
    assert_matches(Data(LAYER, SPREADS[ids]), umma, watch=True)


def test_a_row_does_not_depend_on_the_other_rows(in_turn):
    """Alone it is one of half of the rows; with others one of all."""
    last = np.flatnonzero(MANY.ids[:, 0] == 2)[200]
    alone = Data(LAYER, MANY.ids[last : last + 1])
    alone.x, alone.weights = MANY.x[last : last + 1], MANY.weights[last : last + 1]
    np.testing.assert_array_equal(compute(alone, umma)[0], in_turn[last])


@pytest.mark.nightly
@pytest.mark.parametrize("hidden", [384, 784])
def test_pairs_decode_a_matrix(hidden):
    """Each block of threads decodes half of the columns. Of 784, the last half lies beyond the matrix."""
    random, (form, stored) = np.random.default_rng(0), FORMATS["int4"]
    types = {"dtype": "bfloat16", "matrix_dtype": "bfloat16", "out_dtype": "float32", "stored": stored}
    problem = GroupedProblem(3, 192, hidden, PAIR_ROWS, gathered=True, scattered=True, **types)
    matrix, bias = packed(stored, encoded(form, hidden, 192)), np.zeros((3, hidden), np.float32)
    ids = routed(130, 7, 0).astype(np.int32)
    x = random.standard_normal((len(ids), 192), np.float32).astype(DTYPES["bfloat16"])
    results = []
    for rows in HEIGHTS:
        run = build(umma(dataclasses.replace(problem, block_rows=rows), lambda total: total), "sm_100a", watch=True)
        operands = [x, *matrix, bias, np.ones(ids.shape, np.float32), *sort_pairs(3, rows, ids)]
        results.append(run(*operands, undefined((len(ids), hidden), "float32")))
    assert np.isfinite(results[0]).all()
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    ("columns", "tile", "allocated"),
    [(1536, 256, 512), (2880, 256, 512), (300, 192, 512), (128, 128, 256), (8, 64, 128)],
)
def test_tiles_fit_twice_in_tensor_memory(columns, tile, allocated):
    for rows in HEIGHTS:
        shape = umma_tile(GroupedProblem(8, 2048, columns, rows, **BF16))
        assert (shape.columns, shape.allocated_columns) == (tile, allocated)
        assert shape.stages >= 5


def test_the_artifact_says_how_much_tensor_memory_a_block_allocates():
    """The least time of a launch does not depend on it, but the blocks that a multiprocessor holds do."""
    for kernel, columns in ((umma(MANY.layer.problems[1], lambda total: total), 256), (dispatch.dispatch(2, 64), 0)):
        recorder = LaunchRecorder()
        target = tvm.target.Target({"kind": "cuda", "arch": "sm_100a"}, host={"kind": "llvm"})
        with tvm.transform.PassContext(instruments=[recorder]):
            lowered_kernels(tvm.IRModule({"kernel": kernel.with_attr("global_symbol", "kernel")}), target)
        (launch,) = recorder.launches["kernel"]
        assert launch.tensor_columns == columns
        assert ("tensor memory" in " ".join(facts_of([launch], {}))) is (columns > 0)


def test_only_pairs_of_blocks_have_256_rows():
    """Blocks are as high where every product of a layer can be computed so."""
    problem = GroupedProblem(8, 256, 256, **BF16)
    other = dataclasses.replace(problem, dtype="float32", matrix_dtype="float32", tf32=True)
    assert heights_on_tensor_cores([problem, problem], "sm_100a") == (16, 64, 256)
    assert heights_on_tensor_cores([problem, other], "sm_100a") == (16, 64, 128)
    assert heights_on_tensor_cores([problem, problem], "sm_90a") == (16, 64, 128)
    dense = dense_problem(4096, 4096, **BF16)
    highest = {name: choices(dense, name)[-1].problem.block_rows for name in ("sm_90a", "sm_100", "sm_100a", "sm_103a")}
    assert highest == {"sm_90a": 128, "sm_100": 128, "sm_100a": 256, "sm_103a": 256}


def test_what_the_kernel_cannot_compute_has_a_reason():
    problem = GroupedProblem(4, 128, 128, 64, **BF16)
    assert [why_not(problem, name) for name in ARCHITECTURES] == [None, None]
    assert all(name in LIMITS for name in ARCHITECTURES)
    assert why_not(problem, "sm_100") == "the code is for sm_100; tcgen05 needs sm_100a or sm_103a"
    refused = {
        "float32 rows": {"dtype": "float32", "matrix_dtype": "float32"},
        "float8_e4m3fn rows": {"dtype": FP8, "stored": PackedFormat("fp8", 128)},
        "blocks of 16 rows": {"block_rows": 16},
        "blocks of 128 rows": {"block_rows": 128},
        "100 inputs": {"inner": 100},
        "136 inputs": {"inner": 136, "stored": PackedFormat("int8", 8)},
        "hidden units": {"gated": True, "width": 60},
        "one type for both": {"matrix_dtype": "float16"},
        "groups of 12": {"stored": PackedFormat("int8", 12)},
        "float64": {"out_dtype": "float64"},
    }
    for reason, fields in refused.items():
        assert reason in why_not(dataclasses.replace(problem, **fields), "sm_100a")


UP = GroupedProblem(128, 2048, 768, PAIR_ROWS, gated=True, gathered=True, **BF16)
DOWN = GroupedProblem(128, 768, 2048, PAIR_ROWS, scattered=True, **BF16)
DENSE = dense_problem(2880, 2880, block_rows=PAIR_ROWS, **BF16)


@functools.cache
def _machine_code(problem: GroupedProblem, architecture: str = "sm_100a") -> tuple[str, str]:
    """The machine code, and what ptxas says of it."""
    epilogue = (lambda gate, up: gate * up) if problem.gated else (lambda total: total)
    form = [dense_kernel] if problem == DENSE else []
    compiled = compile_source(source_of(umma(problem, epilogue, *form), architecture), architecture)
    assert compiled is not None and not compiled.advisories
    (sass,), (resources,) = compiled.sass.values(), compiled.resources.values()
    return sass, resources


@pytest.mark.skipif(find_disassembler() is None, reason="there is no cuobjdump, or no nvdisasm")
@thinned(
    ("problem", "architecture"),
    [
        (UP, "sm_100a"),
        (UP, "sm_103a"),
        (DOWN, "sm_100a"),
        (DENSE, "sm_100a"),
        (dataclasses.replace(UP, block_rows=64), "sm_100a"),
        (dataclasses.replace(UP, stored=PackedFormat("int4", 128, "float16")), "sm_100a"),
    ],
    6,
)
def test_machine_code(problem, architecture):
    """One thread starts the products of a k-tile one behind another: ptxas knows that the values which it needs are the
    same in the warp, and makes no loop over threads. Nothing is spilled, and one block fits on a multiprocessor."""
    sass, resources = _machine_code(problem, architecture)
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in resources
    assert "LDL" not in sass and "STL" not in sass
    registers, tile = int(re.search(r"Used (\d+) registers", resources)[1]), umma_tile(problem)
    assert GPUS["b200"].occupancy(tile.threads, registers, 0, tile.allocated_columns).blocks >= 1
    loop = main_loop(sass, "UTCHMMA")
    assert [sum(what.startswith(name) for what in loop) for name in ("UTCHMMA", "UTCBAR")] == [4, 1]
    assert not any("BRA.U.ANY" in what for what in loop)
    assert all(("2CTA" in what) is (tile.cluster > 1) for what in loop if what.startswith("UTC"))
    assert ("UTMALDG.2D.GATHER4" in sass) is problem.gathered and "LDGSTS" not in sass
    assert any(what.startswith("LDTM.16dp256bit") for body in inner_loops(sass) for what in body)
