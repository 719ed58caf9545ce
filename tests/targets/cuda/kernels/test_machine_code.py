"""Machine code of the kernels: it has the instructions that they are written for, and uses no memory beyond theirs."""

from __future__ import annotations

import dataclasses
import functools
import re
import struct
from typing import Any

import pytest

from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.targets.cuda.estimates.gpus import GPUS
from moec.targets.cuda.kernels.attention_mma import attention_mma
from moec.targets.cuda.kernels.attention_wgmma import attention_wgmma
from moec.targets.cuda.kernels.gemm_parts import gemm_parts, join_parts
from moec.targets.cuda.kernels.grouped_gemm_mma import SHAPES, grouped_gemm_mma
from moec.targets.cuda.kernels.grouped_gemm_wgmma import grouped_gemm_wgmma
from moec.targets.cuda.kernels.mma_tile import tile_shape
from moec.targets.cuda.kernels.wgmma_tile import HEIGHTS
from moec.targets.cuda.nvcc import compile_source, find_disassembler, find_tool
from moec.targets.gpu.kernels import dispatch, dispatch_many, expert_choice, route
from moec.targets.gpu.kernels.activation import experts_epilogue
from moec.targets.gpu.kernels.append import append
from moec.targets.gpu.kernels.attention_few import attention_few
from moec.targets.gpu.kernels.attention_join import attention_join
from moec.targets.gpu.kernels.attention_tiled import attention_tiled
from moec.targets.gpu.kernels.combine import combine
from moec.targets.gpu.kernels.combining_gemv import CombiningProblem, combining_gemv
from moec.targets.gpu.kernels.dense_problem import dense_kernel, dense_problem
from moec.targets.gpu.kernels.gemv import gemv
from moec.targets.gpu.kernels.grouped_gemm_simt import grouped_gemm_simt
from moec.targets.gpu.kernels.grouped_gemv import grouped_gemv
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.gpu.kernels.linear_attention import linear_attention
from moec.targets.gpu.kernels.normalization import normalize
from moec.targets.gpu.kernels.packed_format import PackedFormat
from moec.targets.gpu.kernels.pad_rows import Padding, pad_rows
from moec.targets.gpu.kernels.row_share import RowLayout
from moec.targets.gpu.kernels.softmax import softmax
from moec.targets.tvm.heavy.attention import AttentionProblem
from moec.targets.tvm.heavy.experts import CombineProblem
from moec.targets.tvm.heavy.linear_attention import LinearAttentionProblem
from moec.targets.tvm.heavy.route import RouteProblem
from moec.targets.tvm.lowering.paged_tensors import AppendProblem

from .kernel_runner import source_of
from .machine_code import main_loop
from .read_only_loads import written_arrays_loaded_as_read_only

pytestmark = pytest.mark.skipif(find_tool("nvcc") is None, reason="there is no nvcc")


_BEHIND = GroupedProblem(
    128, 768, 2048, 128, scattered=True, dtype="bfloat16", matrix_dtype="bfloat16", out_dtype="bfloat16"
)


def _half(rows: int) -> GroupedProblem:
    stored = {"dtype": "bfloat16", "matrix_dtype": "bfloat16", "out_dtype": "bfloat16"}
    return GroupedProblem(128, 2048, 768, rows, gated=True, gathered=True, **stored)


_FP8 = dataclasses.replace(_half(128), dtype="float8_e4m3fn", stored=PackedFormat("fp8", 128))

_SHARED = dataclasses.replace(_FP8, shares_scales=True)


def _dense(inner: int = 2880, width: int = 2880, **fields: Any) -> GroupedProblem:
    stored = {"dtype": "bfloat16", "matrix_dtype": "bfloat16", "out_dtype": "bfloat16"}
    return dense_problem(inner, width, **stored, **fields)


_ATTENTION = AttentionProblem(256, 256, 1 / 16, 4, causal="lengths", softcap=30.0, has_lengths=True)
_SEQUENCES = AttentionProblem(
    128, 128, 0.1, 4, causal="lengths", has_lengths=True, paged="bfloat16", sequences=True, query_major=True
)
_SINKS = dataclasses.replace(
    AttentionProblem(64, 64, 0.125, 8, mask="bfloat16", mask_broadcast=(False, True, False), has_lengths=True),
    has_sinks=True,
    paged="bfloat16",
)
INT4 = PackedFormat("int4", 128, "float16")
SILU, SILU_IN_FULL = (experts_epilogue(ExpertsSpec(), dtype) for dtype in ("bfloat16", "float32"))
MMA = {
    "mma, results of pairs": _BEHIND,
    "mma, int4": dataclasses.replace(_half(128), stored=INT4),
    "mma, int4, 16 rows": dataclasses.replace(_half(16), stored=INT4),
    "mma, fp8": _FP8,
    "mma, fp8, shared scales": _SHARED,
    "mma, fp8, 64 rows": dataclasses.replace(_FP8, block_rows=64),
    "mma, tf32": GroupedProblem(8, 2048, 768, 128, gated=True, gathered=True, tf32=True),
    **{f"mma, {rows} rows": _half(rows) for rows in SHAPES},
}
"""Grouped products by mma.sync, by name."""


def _mma(problem: GroupedProblem) -> Any:
    if not problem.gated:
        return grouped_gemm_mma(problem, lambda total: total)
    return grouped_gemm_mma(problem, SILU_IN_FULL if problem.tf32 else SILU)


def _dense_wgmma(rows: int, *sizes: int) -> Any:
    return grouped_gemm_wgmma(_dense(*sizes, block_rows=rows), lambda total: total, dense_kernel)


KERNELS = {
    "route": lambda: route.route(RouteProblem(RouteSpec(k=8, score="sigmoid", groups=8, groups_kept=4), 512)),
    "dispatch": lambda: dispatch.dispatch(256, 64),
    "scatter_pairs": lambda: dispatch_many.scatter_pairs(256),
    "take_tokens": lambda: expert_choice.take_tokens(
        RouteProblem(RouteSpec(k=256, selection="expert_choice", capacity=64), 256)
    ),
    "simt": lambda: grouped_gemm_simt(GroupedProblem(128, 2048, 768, 128, gated=True, gathered=True), SILU_IN_FULL),
    "gemv": lambda: grouped_gemv(_half(16), SILU),
    "combining gemv": lambda: combining_gemv(
        CombiningProblem(_BEHIND, CombineProblem(128, 2048, "bfloat16", weighted=True), 8)
    ),
    "combine, rows of an odd size": lambda: combine(
        CombineProblem(128, 2047, "bfloat16", weighted=True, pair_dtype="bfloat16", pair_width=2048)
    ),
    "pad rows": lambda: pad_rows(Padding(2047, 2048, "bfloat16")),
    "wgmma, 128 rows": lambda: grouped_gemm_wgmma(_half(128), SILU),
    "wgmma, 64 rows": lambda: grouped_gemm_wgmma(_half(64), SILU),
    "wgmma, int4": lambda: grouped_gemm_wgmma(dataclasses.replace(_half(128), stored=INT4), SILU),
    "wgmma, results of pairs": lambda: grouped_gemm_wgmma(_BEHIND, lambda total: total),
    "wgmma, results of pairs, whole tiles": lambda: grouped_gemm_wgmma(
        dataclasses.replace(_BEHIND, experts=32, inner=2880, width=2880), lambda total: total
    ),
    "wgmma, results of pairs, few inputs": lambda: grouped_gemm_wgmma(
        dataclasses.replace(_BEHIND, inner=128), lambda total: total
    ),
    "wgmma, 128 rows, few inputs": lambda: grouped_gemm_wgmma(dataclasses.replace(_half(128), inner=256), SILU),
    "wgmma, dense, inputs of one k-tile": lambda: _dense_wgmma(128, 64, 1024),
    "wgmma, fp8": lambda: grouped_gemm_wgmma(_FP8, SILU),
    "wgmma, fp8, shared scales": lambda: grouped_gemm_wgmma(_SHARED, SILU),
    "softmax": lambda: softmax(RowLayout(None, "float16")),
    "layer norm": lambda: normalize(RowLayout(4096, "bfloat16"), 1e-5, True, "bfloat16", "bfloat16"),
    "attention of few": lambda: attention_few(_ATTENTION, "bfloat16"),
    "attention of few, in pages": lambda: attention_few(
        AttentionProblem(128, 128, 0.1, 8, causal="lengths", has_lengths=True, paged="bfloat16"), "bfloat16"
    ),
    "attention of few with sinks": lambda: attention_few(_SINKS, "bfloat16"),
    "attention on tensor cores with sinks": lambda: attention_mma(_SINKS, "bfloat16"),
    "attention on tensor cores": lambda: attention_mma(_ATTENTION, "bfloat16"),
    "attention on tensor cores, usual heads": lambda: attention_mma(
        dataclasses.replace(_ATTENTION, head_size=128, value_size=128), "bfloat16"
    ),
    "wgmma, attention": lambda: attention_wgmma(AttentionProblem(128, 128, 0.1, 4, causal="last"), "bfloat16"),
    "wgmma, attention that is capped": lambda: attention_wgmma(
        dataclasses.replace(_ATTENTION, head_size=128, value_size=128), "bfloat16"
    ),
    "wgmma, attention with large heads": lambda: attention_wgmma(
        AttentionProblem(256, 256, 0.1, causal="last"), "bfloat16"
    ),
    "wgmma, attention with sinks": lambda: attention_wgmma(_SINKS, "bfloat16"),
    "attention in tiles": lambda: attention_tiled(_ATTENTION, "float32"),
    "attention of sequences, few": lambda: attention_few(_SEQUENCES, "bfloat16"),
    "attention of few queries, int8": lambda: attention_few(dataclasses.replace(_SEQUENCES, paged="int8"), "float32"),
    "attention in tiles, int8": lambda: attention_tiled(dataclasses.replace(_SEQUENCES, paged="int8"), "float32"),
    "rows of int8": lambda: append(AppendProblem((1, 8), (128,), "float32", "int8", "int64", by_entry=True)),
    "attention of sequences, joined": lambda: attention_join(_SEQUENCES, "bfloat16"),
    "attention of sequences in tiles": lambda: attention_tiled(
        dataclasses.replace(_SEQUENCES, paged="float32"), "float32"
    ),
    "attention of sequences on tensor cores": lambda: attention_mma(_SEQUENCES, "bfloat16"),
    "wgmma, attention of sequences": lambda: attention_wgmma(_SEQUENCES, "bfloat16"),
    "linear attention of sequences": lambda: linear_attention(
        LinearAttentionProblem(16, 2, 128, 128, 0.1, "head", delta=True, sequences=True, in_entries=True), "sm_80"
    ),
    "dense gemv": lambda: gemv(_dense(), lambda total: total),
    "dense gemv, int4": lambda: gemv(_dense(stored=PackedFormat("int4", 32, "float16")), lambda total: total),
    "dense mma, parts of inputs": lambda: gemm_parts(_dense()),
    "dense mma, parts are joined": lambda: join_parts(_dense(), lambda total: total),
    "dense mma, part of a tile": lambda: grouped_gemm_mma(_dense(block_rows=128), lambda total: total, dense_kernel),
    "wgmma, dense, a narrow router": lambda: _dense_wgmma(64, 512, 8),
    "wgmma, dense, a vocabulary": lambda: _dense_wgmma(128, 1024, 49155),
    "dense mma, a vocabulary": lambda: grouped_gemm_mma(
        _dense(1024, 49155, block_rows=128), lambda total: total, dense_kernel
    ),
    **{f"wgmma, dense, {rows} rows": functools.partial(_dense_wgmma, rows) for rows in HEIGHTS},
    **{name: functools.partial(_mma, problem) for name, problem in MMA.items()},
}


_PTX, _MACHINE_CODE = 1, 2
"""Numbers of the kinds of parts in a fat binary."""
AMPERE, ADA, HOPPER, BLACKWELL = "sm_80", "sm_89", "sm_90a", "sm_120"
SPILLS = ("take_tokens", BLACKWELL)
"""The one kernel that spills: ptxas spills 28 bytes so that three blocks, not two, fit on a multiprocessor."""


def _architectures(name: str) -> list[str]:
    if name.startswith("wgmma"):
        return [HOPPER]
    return [ADA, BLACKWELL] if name.startswith("mma, fp8") else [AMPERE, BLACKWELL]


QUICK = [
    *((name, AMPERE) for name in ("route", "simt", "mma, 128 rows", "mma, int4")),
    *((name, HOPPER) for name in ("wgmma, 128 rows", "wgmma, fp8")),
]


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        pytest.param(name, architecture, marks=() if (name, architecture) in QUICK else pytest.mark.nightly)
        for name in KERNELS
        for architecture in _architectures(name)
        if (name, architecture) != SPILLS
    ],
)
def test_nothing_is_spilled_or_advised_against(name, architecture):
    compiled = compile_source(source_of(KERNELS[name](), architecture), architecture)
    assert compiled is not None
    assert not compiled.advisories
    assert not any(map(written_arrays_loaded_as_read_only, compiled.ptx.values()))
    (resources,) = compiled.resources.values()
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in resources
    (instructions,) = compiled.sass.values() or ("",)
    if instructions:
        assert "LDL" not in instructions and "STL" not in instructions


@pytest.mark.parametrize(
    ("name", "architecture", "kinds"),
    [
        ("route", "sm_80", {_MACHINE_CODE, _PTX}),
        ("wgmma, 128 rows", "sm_90a", {_MACHINE_CODE}),
        ("pad rows", "sm_100a", {_MACHINE_CODE}),
        ("pad rows", "sm_103a", {_MACHINE_CODE}),
    ],
)
def test_newer_gpus_find_ptx_in_a_binary(name, architecture, kinds):
    binary = compile_source(source_of(KERNELS[name](), architecture), architecture).binary
    magic, _version, start, size = struct.unpack_from("<IHHQ", binary)
    assert (magic, start + size) == (0xBA55ED50, len(binary))
    actual, at = set(), start
    while at < len(binary):
        kind, _flags, head, length = struct.unpack_from("<HHIQ", binary, at)
        actual.add(kind)
        at += head + length
    assert actual == kinds


@pytest.mark.skipif(find_disassembler() is None, reason="there is no cuobjdump, or no nvdisasm")
@pytest.mark.parametrize("rows", list(SHAPES))
def test_tensor_cores_and_asynchronous_copies_are_used(rows):
    compiled = compile_source(source_of(grouped_gemm_mma(_half(rows), SILU)), "sm_80")
    (instructions,) = compiled.sass.values()
    assert all(name in instructions for name in ("HMMA.16816", "LDGSTS", "LDSM"))


@pytest.mark.parametrize(
    ("name", "architecture", "gpu", "least"),
    [
        ("mma, 128 rows", AMPERE, "a100", 2),
        ("mma, int4", AMPERE, "a100", 2),
        pytest.param("mma, results of pairs", AMPERE, "a100", 2, marks=pytest.mark.nightly),
        pytest.param("mma, tf32", AMPERE, "a100", 2, marks=pytest.mark.nightly),
        pytest.param("mma, 64 rows", AMPERE, "a100", 3, marks=pytest.mark.nightly),
        pytest.param("mma, 64 rows", AMPERE, "rtx4090", 2, marks=pytest.mark.nightly),
        pytest.param("mma, int4, 16 rows", AMPERE, "a100", 4, marks=pytest.mark.nightly),
        pytest.param("mma, fp8, 64 rows", ADA, "rtx4090", 2, marks=pytest.mark.nightly),
    ],
)
def test_a_multiprocessor_holds_several_blocks(name, architecture, gpu, least):
    (resources,) = compile_source(source_of(KERNELS[name](), architecture), architecture).resources.values()
    shape, registers = tile_shape(MMA[name]), int(re.search(r"Used (\d+) registers", resources)[1])
    assert GPUS[gpu].occupancy(shape.threads, registers, shape.shared_bytes).blocks >= least


@pytest.mark.skipif(find_disassembler() is None, reason="there is no cuobjdump, or no nvdisasm")
@pytest.mark.parametrize(
    ("rows", "names"),
    [(64, ("HGMMA.64x256x16", "UTMALDG.3D")), (128, ("HGMMA.64x192x16", "UTMALDG.3D.MULTICAST", "UCGABAR_WAIT"))],
)
def test_warp_groups_multiply_what_the_accelerator_copies(rows, names):
    compiled = compile_source(source_of(grouped_gemm_wgmma(_half(rows), SILU), "sm_90a"), "sm_90a")
    (instructions,) = compiled.sass.values()
    assert all(name in instructions for name in (*names, "LDGSTS"))


@pytest.mark.skipif(find_disassembler() is None, reason="there is no cuobjdump, or no nvdisasm")
@pytest.mark.parametrize(
    ("name", "architecture", "instruction"),
    [("wgmma, fp8", HOPPER, "QGMMA.64x144x32"), ("mma, fp8", ADA, "QMMA.16832.F32.E4M3.E4M3")],
)
def test_numbers_of_8_bits_are_multiplied_as_they_are(name, architecture, instruction):
    (instructions,) = compile_source(source_of(KERNELS[name](), architecture), architecture).sass.values()
    assert instruction in instructions and "F2F" not in instructions.replace("F2FP", "")


@pytest.mark.skipif(find_disassembler() is None, reason="there is no cuobjdump, or no nvdisasm")
@pytest.mark.parametrize(
    ("problem", "architecture", "most"),
    [
        (dataclasses.replace(_half(16), stored=INT4), AMPERE, 4.1),
        (dataclasses.replace(_half(16), stored=PackedFormat("mxfp4", 32, "float8_e8m0fnu")), AMPERE, 5.1),
        (dataclasses.replace(_half(16), stored=PackedFormat("fp4", 16, "float16")), AMPERE, 4.9),
        (dataclasses.replace(_half(16), stored=PackedFormat("nvfp4", 16, "float8_e4m3fn")), AMPERE, 5.2),
        (dataclasses.replace(_FP8, block_rows=16), ADA, 3.9),
    ],
    ids=["int4", "mxfp4", "fp4", "nvfp4", "fp8"],
)
def test_instructions_per_weight(problem, architecture, most):
    """A bound on the instructions per weight in the main loop of a product of few rows, counting all instructions.

    Multiply-adds that decode integers with a factor of 1 become additions, so both are two per weight of int4."""
    compiled = compile_source(source_of(grouped_gemv(problem, SILU), architecture), architecture)
    (sass,) = compiled.sass.values()
    loop = main_loop(sass, "FFMA")
    decodes = problem.stored.element == "int4"
    done = sum(what.startswith(("FFMA", "FADD") if decodes else "FFMA") for what in loop)
    assert 2 < len(loop) / (done / 2 if decodes else done) < most


@pytest.mark.skipif(find_disassembler() is None, reason="there is no cuobjdump, or no nvdisasm")
def test_exact_products_use_no_tensor_cores():
    (instructions,) = compile_source(source_of(KERNELS["simt"]()), "sm_80").sass.values()
    assert "FFMA" in instructions and "HMMA" not in instructions
