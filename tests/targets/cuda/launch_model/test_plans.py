"""Plans as artifacts hold them."""

from __future__ import annotations

import dataclasses
import json

import pytest

from moec.errors import ArtifactError
from moec.targets.cuda.kernels.grouped_gemm_mma import GROUPED_GEMM_MMA
from moec.targets.cuda.kernels.grouped_gemm_wgmma import GROUPED_GEMM_WGMMA
from moec.targets.cuda.kernels.grouped_gemv import GROUPED_GEMV
from moec.targets.cuda.kernels.grouped_problem import GroupedProblem
from moec.targets.cuda.kernels.packed_format import PackedFormat
from moec.targets.cuda.launch_model.plans import Product, StreamPlan, TilePlan, WalkPlan, WarpPlan, parse_plan

PRODUCT = Product(4, 256, 64, 64, "bfloat16", 4.5, 2, 2, gathered=False)
TILE = TilePlan(PRODUCT, 16, 32, 64, 3, "mma")


@pytest.mark.parametrize(
    "plan",
    [
        TILE,
        TilePlan(PRODUCT, 128, 256, 64, 4, "wgmma", 4, persistent=True, cluster=2),
        WarpPlan(PRODUCT, 4, 4, 8),
        StreamPlan(("x", "pairs"), ("y",), 16, 4),
        WalkPlan("2 * tokens", 0.25, moved=("counts",)),
    ],
)
def test_what_is_written_is_read(plan):
    assert parse_plan(json.loads(json.dumps(plan.as_data())), "here") == plan


def test_what_kernels_of_products_plan():
    types = {"dtype": "bfloat16", "matrix_dtype": "bfloat16", "out_dtype": "float32"}
    problem = GroupedProblem(8, 1024, 384, block_rows=128, gated=True, gathered=True, **types)
    product = Product(8, 1024, 768, 384, "bfloat16", 16.0, 2, 4, gathered=True)
    assert Product.of(problem) == product
    assert GROUPED_GEMM_WGMMA.plan(problem) == TilePlan(product, 128, 192, 64, 5, "wgmma", 4, True, 2, 2)
    assert GROUPED_GEMM_MMA.plan(problem) == TilePlan(product, 128, 128, 64, 3, "mma")
    assert GROUPED_GEMV.plan(problem) == WarpPlan(product, warps=4, columns=4, inputs=8)
    stored = PackedFormat("int4", 64, "float16", zero_points=False)
    packed = dataclasses.replace(problem, stored=stored)
    assert Product.of(packed).weight_bits == 4 + 16 / 64


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
