"""The grouped products for CUDA, as part of a layer of experts, against the reference, in the emulator."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from moec.ir.dialect import ExpertsSpec, choices
from moec.targets.cuda.kernels import grouped_gemm_mma, grouped_gemm_wgmma
from moec.targets.cuda.kernels.grouped_gemm_mma import SHAPES
from moec.targets.cuda.kernels.grouped_gemm_mma import grouped_gemm_mma as mma
from moec.targets.cuda.kernels.grouped_gemm_wgmma import grouped_gemm_wgmma as wgmma
from moec.targets.gpu.kernels import combine, grouped_gemm_simt, grouped_gemv
from moec.targets.gpu.kernels.grouped_gemm_simt import grouped_gemm_simt as simt
from moec.targets.gpu.kernels.grouped_gemv import grouped_gemv as gemv
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem, interleave
from moec.targets.gpu.kernels.packed_format import PackedFormat
from moec.targets.tvm.heavy.experts import CombineProblem

from ....products import thinned
from .kernel_runner import build
from .layers import GATED, Data, Layer, assert_matches, compute, undefined

RANDOM = np.random.default_rng(0)
TOKENS = (0, 1, 7, 64, 300)


def random_ids(layer: Layer, tokens: int, slots: int = 2) -> np.ndarray:
    """Random ids [tokens, slots]. Some are -1, and some are identity experts if the layer has them."""
    return RANDOM.integers(-1, layer.experts + layer.spec.identity_experts, (tokens, slots))


def combinations(*quick: tuple[int, str], dtypes: tuple[str, ...]) -> list[Any]:
    """Parameters (rows of a block, type): the ``quick`` ones run always, all others are nightly."""
    others = [(rows, dtype) for rows in SHAPES for dtype in dtypes if (rows, dtype) not in quick]
    return [*quick, *(pytest.param(*other, marks=pytest.mark.nightly) for other in others)]


@pytest.mark.parametrize(
    "block_rows, dtype",
    combinations((16, "float32"), dtypes=("float32", "float16", "bfloat16")),
)
def test_any_size_without_tensor_cores(block_rows, dtype):
    layer = Layer(experts=5, inner=33, hidden=45, block_rows=block_rows, dtype=dtype)
    for tokens in TOKENS:
        assert_matches(Data(layer, random_ids(layer, tokens)), simt)


@pytest.mark.parametrize(
    "block_rows, dtype",
    combinations((64, "bfloat16"), dtypes=("float16", "bfloat16")),
)
def test_tensor_cores(block_rows, dtype):
    layer = Layer(experts=3, inner=384, hidden=128, block_rows=block_rows, dtype=dtype)
    for tokens in (0, 1, 100):
        assert_matches(Data(layer, random_ids(layer, tokens)), mma)


@thinned("block_rows, inner, hidden, dtype", [(64, 200, 56, "float16"), (128, 520, 136, "bfloat16")], 2)
def test_tensor_cores_that_read_shared_memory(block_rows, inner, hidden, dtype):
    """Inputs are not a multiple of k-tiles, nor columns of tiles; 56 inputs are less than one k-tile."""
    layer = Layer(experts=3, inner=inner, hidden=hidden, block_rows=block_rows, dtype=dtype)
    to_one, to_the_last_few = np.full((100, 2), 1), np.where(np.arange(300).reshape(150, 2) % 7, 2, -1)
    for ids in (*(random_ids(layer, tokens) for tokens in (0, 1, 100)), to_one, to_the_last_few):
        assert_matches(Data(layer, ids), wgmma)


@thinned("dtype", ["float32", "float16", "bfloat16"], 3)
def test_few_tokens(dtype):
    layer = Layer(experts=7, inner=264, hidden=72, block_rows=16, dtype=dtype)
    for tokens in (0, 1, 7, 16):
        assert_matches(Data(layer, random_ids(layer, tokens)), gemv)


@pytest.mark.parametrize("dtype, inner", [("float32", 900), ("bfloat16", 1544)])
def test_few_tokens_with_many_inputs(dtype, inner):
    """The loop takes more than one turn, and in the last step some lanes have no inputs."""
    layer = Layer(experts=3, inner=inner, hidden=16, block_rows=16, dtype=dtype)
    assert_matches(Data(layer, random_ids(layer, 3)), gemv)


VARIANTS = {
    "not gated": ExpertsSpec(gate_layout="none", activation="gelu"),
    "limited output": ExpertsSpec(gate_layout="separate", output_limit=1.0),
    "clamped, weight on the input, identity experts": ExpertsSpec(
        gate_layout="separate", weight_on_input=True, identity_experts=2, alpha=1.702, limit=0.5, up_offset=1.0
    ),
}


@pytest.mark.parametrize("kernel", [pytest.param(simt, marks=pytest.mark.nightly), mma, gemv])
@thinned("variant", list(VARIANTS), 3)
def test_variants_of_experts(kernel, variant):
    layer = Layer(experts=3, inner=128, hidden=128, block_rows=16, spec=VARIANTS[variant], dtype="float16")
    assert_matches(Data(layer, random_ids(layer, 16)), kernel)


@pytest.mark.parametrize(
    "activation",
    ["gelu", *(pytest.param(name, marks=pytest.mark.nightly) for name in choices(ExpertsSpec, "activation"))],
)
def test_activations(activation):
    layer = Layer(experts=2, inner=16, hidden=16, block_rows=16, spec=dataclasses.replace(GATED, activation=activation))
    assert_matches(Data(layer, random_ids(layer, 16)), simt)


@pytest.mark.parametrize("kernel", [simt, mma])
def test_all_tokens_to_one_expert(kernel):
    layer = Layer(experts=3, inner=128, hidden=128, block_rows=16, spec=VARIANTS["not gated"], dtype="float16")
    assert_matches(Data(layer, np.full((100, 2), 2)), kernel)


@thinned("kernel", [simt, gemv], 2)
def test_many_experts_few_of_them_used(kernel):
    layer = Layer(experts=256, inner=16, hidden=8, block_rows=16)
    assert_matches(Data(layer, np.array([[255, 0], [13, 255]])), kernel)


def test_a_row_does_not_depend_on_the_other_rows():
    layer = Layer(experts=3, inner=128, hidden=128, block_rows=16, spec=VARIANTS["not gated"], dtype="float16")
    together = Data(layer, np.tile([[1, 2]], (70, 1)))
    alone = Data(layer, together.ids[-1:])
    alone.x, alone.weights = together.x[-1:], together.weights[-1:]
    np.testing.assert_array_equal(compute(alone, mma)[0], compute(together, mma)[-1])


def test_rows_of_no_expert_become_zero():
    kernel = build(combine.trim(CombineProblem(4, 20, "float16")))
    ids, rows = RANDOM.integers(-1, 6, (21, 1)).astype(np.int32), RANDOM.standard_normal((21, 20), np.float32)
    y = kernel(ids, rows, undefined((21, 20), "float16"))
    served = (ids >= 0) & (ids < 4)
    np.testing.assert_array_equal(y, np.where(served, rows, 0).astype(np.float16))


@pytest.mark.parametrize("width", [18, 22, 24])
def test_columns_that_a_row_does_not_have_at_once_are_stored_in_parts(width):
    """Rows of pairs have 24 columns, which are read four at once. Rows of 18 or 22 columns are stored two at once, and
    only the columns that exist."""
    text = combine.combine(CombineProblem(4, width, "float16", pair_width=24)).script()
    assert (f"if T.Or(T.bool(False), part * 4 + i * 2 < {width}):" in text) == (width != 24)


def test_gates_and_ups_are_interleaved_in_groups():
    gate, up = np.arange(10.0).reshape(10, 1), 100 + np.arange(10.0).reshape(10, 1)
    rows = interleave(gate, up)[:, 0]
    np.testing.assert_array_equal(rows[:8], gate[:8, 0])
    np.testing.assert_array_equal(rows[8:16], up[:8, 0])
    np.testing.assert_array_equal(rows[16:], [8, 9, *[0] * 6, 108, 109, *[0] * 6])


def test_what_a_kernel_cannot_compute_has_a_reason():
    problem = GroupedProblem(4, 128, 128, 64, dtype="float16", matrix_dtype="float16")
    assert grouped_gemm_mma.why_not(problem, "sm_80") is None and grouped_gemm_simt.why_not(problem) is None
    assert grouped_gemv.why_not(problem) is None
    refused = {
        "float32 rows": {"dtype": "float32", "matrix_dtype": "float32"},
        "one type for both": {"matrix_dtype": "bfloat16"},
        "blocks of 32 rows": {"block_rows": 32},
        "100 inputs": {"inner": 100},
        "hidden units": {"gated": True, "width": 60},
        "float64": {"out_dtype": "float64"},
    }
    for reason, fields in refused.items():
        assert reason in grouped_gemm_mma.why_not(dataclasses.replace(problem, **fields), "sm_80")
    refused = {
        "float32 rows": {"dtype": "float32", "matrix_dtype": "float32"},
        "blocks of 16 rows": {"block_rows": 16},
        "100 inputs": {"inner": 100},
        "136 inputs": {"inner": 136, "stored": PackedFormat("int8", 8)},
        "hidden units": {"gated": True, "width": 60},
        "one type for both": {"matrix_dtype": "bfloat16"},
        "groups of 12": {"stored": PackedFormat("int8", 12)},
        "float64": {"out_dtype": "float64"},
    }
    assert grouped_gemm_wgmma.why_not(problem, "sm_90a") is None
    for reason, fields in refused.items():
        assert reason in grouped_gemm_wgmma.why_not(dataclasses.replace(problem, **fields), "sm_90a")
    assert "blocks of 20 rows" in grouped_gemm_simt.why_not(dataclasses.replace(problem, block_rows=20))
    assert "float64" in grouped_gemm_simt.why_not(dataclasses.replace(problem, dtype="float64"))
    assert "reads 8 at once" in grouped_gemv.why_not(dataclasses.replace(problem, inner=100))
    mixed = CombineProblem(4, 20, "float32", pair_dtype="float16")
    assert combine.COMBINE.why_not(mixed, "sm_80") is None
    assert "float64" in combine.COMBINE.why_not(dataclasses.replace(mixed, weight_dtype="float64"), "sm_80")


@pytest.mark.parametrize(
    ("stored", "matrix_bytes"),
    [
        (None, 2 * 64 * 32 * 2),
        (PackedFormat("int4", 32, "float16"), 2 * 64 * 32 * (4 + 16 / 32) / 8),
        (PackedFormat("mxfp4", 32, "float8_e8m0fnu"), 2 * 64 * 32 * (4 + 8 / 32) / 8),
        (PackedFormat("int8"), 2 * 64 * 32 * (8 + 32 / 64) / 8),
    ],
)
def test_intensity_where_the_matrix_is_read_once(stored, matrix_bytes):
    types = {"dtype": "bfloat16", "matrix_dtype": "bfloat16", "out_dtype": "float32"}
    actual = GroupedProblem(8, 64, 32, gated=True, stored=stored, **types).intensity(rows=3)
    assert actual == pytest.approx(3 * 2 * 2 * 64 * 32 / (matrix_bytes + 3 * (64 * 2 + 32 * 4)))
