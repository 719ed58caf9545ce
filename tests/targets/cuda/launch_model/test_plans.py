"""Plans as they are stored in artifacts."""

from __future__ import annotations

import dataclasses
import json

import pytest

from moec.common.errors import ArtifactError
from moec.targets.base import SizeRange
from moec.targets.cuda.kernels.attention_few import ATTENTION_FEW
from moec.targets.cuda.kernels.attention_mma import ATTENTION_MMA
from moec.targets.cuda.kernels.attention_operands import AttentionLaunch
from moec.targets.cuda.kernels.attention_tiled import ATTENTION_TILED
from moec.targets.cuda.kernels.attention_wgmma import ATTENTION_WGMMA
from moec.targets.cuda.kernels.dense_problem import dense_problem
from moec.targets.cuda.kernels.gemv import GEMV
from moec.targets.cuda.kernels.grouped_gemm_mma import GROUPED_GEMM_MMA
from moec.targets.cuda.kernels.grouped_gemm_wgmma import GROUPED_GEMM_WGMMA
from moec.targets.cuda.kernels.grouped_gemv import GROUPED_GEMV
from moec.targets.cuda.kernels.grouped_problem import GroupedProblem
from moec.targets.cuda.kernels.packed_format import PackedFormat
from moec.targets.cuda.kernels.tiled_kernels import DenseLaunch
from moec.targets.cuda.launch_model.plans import (
    AttentionPlan,
    MemoryBoundPlan,
    ProductPlan,
    TilePlan,
    WalkPlan,
    WarpPlan,
    parse_plan,
)
from moec.targets.tvm.lower.attention import AttentionProblem

PRODUCT = ProductPlan(4, 256, 64, 64, "bfloat16", 4.5, 2, 2, gathered=False)
TILE = TilePlan(PRODUCT, 16, 32, 64, 3, "mma")


@pytest.mark.parametrize(
    "plan",
    [
        TILE,
        TilePlan(PRODUCT, 128, 256, 64, 4, "wgmma", 4, persistent=True, cluster=2),
        WarpPlan(PRODUCT, 4, 4, 8),
        MemoryBoundPlan(("x", "pairs"), ("y",), 16, 4),
        WalkPlan("2 * tokens", 0.25, moved=("counts",)),
        AttentionPlan("float32", 4, 2, 64, 64, 2, 8, "", 64, 64, "fma", "B * G", "S", "P", "parts", 5, ahead=False),
    ],
)
def test_what_is_written_is_read(plan):
    assert parse_plan(json.loads(json.dumps(plan.as_data())), "here") == plan


def test_what_kernels_of_products_plan():
    types = {"dtype": "bfloat16", "matrix_dtype": "bfloat16", "out_dtype": "float32"}
    problem = GroupedProblem(8, 1024, 384, block_rows=128, gated=True, gathered=True, **types)
    product = ProductPlan(8, 1024, 768, 384, "bfloat16", 16.0, 2, 4, gathered=True)
    assert ProductPlan.of(problem) == product
    assert GROUPED_GEMM_WGMMA.plan(problem) == TilePlan(product, 128, 192, 64, 5, "wgmma", 4, True, 2, 2, 14)
    assert GROUPED_GEMM_MMA.plan(problem) == TilePlan(product, 128, 128, 64, 2, "mma")
    assert GROUPED_GEMV.plan(problem) == WarpPlan(product, warps=4, columns=4, inputs=8)
    stored = PackedFormat("int4", 64, "float16", zero_points=False)
    packed = dataclasses.replace(problem, stored=stored)
    assert ProductPlan.of(packed).weight_bits == 4 + 16 / 64


def test_what_dense_products_of_few_rows_plan():
    types = {"dtype": "bfloat16", "matrix_dtype": "bfloat16", "out_dtype": "bfloat16"}
    problem = dense_problem(1024, 384, **types)
    product = ProductPlan(1, 1024, 384, 384, "bfloat16", 16.0, 2, 2, gathered=True)
    assert GEMV.plan(DenseLaunch(problem, 16)) == WarpPlan(product, 4, 4, 8, rows=4, side_by_side=True)
    packed = dataclasses.replace(problem, stored=PackedFormat("int4", 64, "float16"))
    assert GEMV.plan(DenseLaunch(packed, 16)).multiply_adds == 1.25


def test_what_attention_plans():
    problem = AttentionProblem(128, 512, 0.1, 4, causal="last")
    few, many = (AttentionLaunch(problem, "bfloat16", sizes) for sizes in (SizeRange(0, 16), SizeRange(17)))
    alike = ("bfloat16", 2, 2, 128, 256, 2, 4, "last")
    sizes = ("B * G", "S", "P")
    wgmma = {"weighs_meanwhile": True, "copying_warps": 4}
    assert ATTENTION_MMA.plan(many) == AttentionPlan(*alike, 64, 64, "mma", *sizes)
    assert ATTENTION_WGMMA.plan(many) == AttentionPlan(*alike, 128, 64, "wgmma", *sizes, **wgmma)
    # K-tiles of 16: 8 along a head, 4 along the keys of a tile.
    assert ATTENTION_TILED.plan(many) == AttentionPlan(*alike, 64, 64, "fma", *sizes, waits=12, ahead=False)
    # Each of 32 lanes has 8 numbers of a key and of a value. It reads 4 keys at once, 128 bytes; 4 teams read 16 keys.
    assert ATTENTION_FEW.plan(few) == AttentionPlan(*alike, 4, 16, "fma", *sizes, "parts", ahead=False)
    paged = ATTENTION_FEW.plan(dataclasses.replace(few, problem=dataclasses.replace(problem, paged="bfloat16")))
    assert paged.held == "pages * page"


def test_no_plan():
    assert parse_plan(None, "here") is None


@pytest.mark.parametrize(
    "changed",
    [
        {"kind": "other"},
        {"rows": "16"},
        {"rows": 0},
        {"rows": 10**400},
        {"rows": True},
        {"stages": -1},
        {"more": 1},
        {"product": 7},
        {"product": {**PRODUCT.__dict__, "weight_bits": "many"}},
        {"product": {"experts": 4}},
    ],
)
def test_what_moec_did_not_write_is_refused(changed):
    with pytest.raises(ArtifactError, match=r"^here: its plan cannot be read: .*; compile the model again"):
        parse_plan({**TILE.as_data(), **changed}, "here")
    with pytest.raises(ArtifactError):
        parse_plan([1], "here")
