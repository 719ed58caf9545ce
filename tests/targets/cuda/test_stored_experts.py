"""Experts in narrow formats on the CUDA target, emulated, against the reference interpreter.

Matrices stay as they are stored, experts may differ in format and size, and activations are rounded for the arithmetic.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

import moec
from moec.common.errors import UnsupportedError
from moec.ir import interpreter
from moec.ir.dialect import ExpertsSpec
from moec.passes import pipeline
from moec.targets.cuda.grouped_products import PRODUCTS
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.gpu.kernels.packed_format import PackedFormat
from moec.targets.gpu.lowering.expert_matrices import filled
from moec.targets.tvm.kernels.kernel import select

from ...products import thinned
from ..node_models import node_model

E, k, inner, hidden = 5, 2, 64, 32
SIZES = (32, 0, 9, 32, 20)
INT8, MXFP4, NVFP4 = (f"quantize-experts{{format={name}}}" for name in ("int8", "mxfp4", "nvfp4"))
INT4 = "quantize-experts{format=int4,group=32,zero_points=true}"
MIXED = "quantize-experts{format=int4,group=32,experts=0+3},quantize-experts{format=int8,experts=1}"
CASES = {
    "int8": (ExpertsSpec(), INT8, 0.3),
    "mxfp4": (ExpertsSpec(weight_on_input=True), MXFP4, 0.2),
    "iq4": (ExpertsSpec(), "quantize-experts{format=iq4,group=32}", 0.2),
    "nvfp4": (ExpertsSpec(), NVFP4, 0.18),
    "formats of their own": (ExpertsSpec(activation="gelu", gate_layout="none"), MIXED, 0.6),
    "sizes of their own": (ExpertsSpec(up_offset=1.0, hidden_sizes=SIZES), INT4, 0.2),
}
"""The spec of the experts, the passes that quantise them, and the largest share of the floats' bytes that may
remain."""


def layer(spec: ExpertsSpec, dtype: type = np.float32, inner: int = inner, hidden: int = hidden) -> ir.Model:
    """A layer of experts. Biases of units that an expert does not have are so large that using them would be
    noticed."""
    random, width = np.random.default_rng(4), 2 * hidden if spec.gated else hidden
    up_bias = random.standard_normal((E, width), dtype=np.float32)
    for expert, size in enumerate(spec.hidden_sizes):
        up_bias.reshape(E, -1, hidden)[expert, :, size:] = 6e4
    constants = {
        "up": random.standard_normal((E, width, inner), dtype=np.float32) / 8,
        "down": random.standard_normal((E, inner, hidden), dtype=np.float32) / 6,
        "up_bias": up_bias,
        "down_bias": random.standard_normal((E, inner), dtype=np.float32),
    }
    feeds = {"x": np.zeros((1, inner), dtype), "weights": np.zeros((1, k), dtype)}
    constants = {name: array.astype(dtype) for name, array in constants.items()}
    return node_model("Experts", {**feeds, "experts": np.zeros((1, k), np.int32)}, constants, spec)


def case(tokens: int, dtype: type = np.float32, inner: int = inner) -> dict[str, np.ndarray]:
    random = np.random.default_rng(tokens)
    x, weights = random.standard_normal((tokens, inner)).astype(dtype), random.random((tokens, k)).astype(dtype)
    return {"x": x, "weights": weights, "experts": random.integers(-1, E, (tokens, k)).astype(np.int32)}


@thinned("name", CASES, 4)
def test_experts_stay_as_they_are_stored(program_of, emulated, name):
    spec, passes, share = CASES[name]
    model = layer(spec)
    pipeline.run(model, pipeline.parse(passes))
    floats = E * inner * hidden * 4 * (3 if spec.gated else 2)
    program = program_of(model)
    packed = [weight for weight in program.weights if "rows" in weight.name]
    assert sum(int(np.prod(weight.shape)) * np.dtype(weight.dtype).itemsize for weight in packed) < share * floats
    run = emulated(program)
    for tokens in (0, 1, 40):
        y, expected = run(case(tokens))["y"], interpreter.run(model, case(tokens), dtype=np.float64)["y"]
        # Hidden values near a rounding boundary may be rounded to either side.
        assert np.linalg.norm(y - expected) <= 1e-3 * np.linalg.norm(expected)


@pytest.mark.nightly
def test_rounded_tokens_on_tensor_cores(without_nvcc):
    """Tokens in float16, a finer type than int8, at numbers of tokens for pairs and for blocks of 16 and 64 rows."""
    dtype, sizes = np.float16, (128, 64)
    model = layer(ExpertsSpec(), dtype, *sizes)
    pipeline.run(model, pipeline.parse(INT4))
    program = moec.compile(model, target="cuda:sm_90a", passes="", emulate=True)
    assert {"moe_grouped_gemm_mma", "moe_grouped_gemm_wgmma", "moe_round_rows"} <= set(program.kernels)
    for tokens in (3, 20, 130):
        inputs = case(tokens, dtype, sizes[0])
        y, expected = program.run(inputs)["y"], interpreter.run(model, inputs, dtype=np.float64)["y"]
        assert np.linalg.norm(y - expected) <= 4e-3 * np.linalg.norm(expected)


ODD = {
    "int4": (ExpertsSpec(), INT4),
    "fp8": (ExpertsSpec("gelu", "none"), "quantize-experts{format=fp8}"),
    "mxfp4": (ExpertsSpec(weight_on_input=True), MXFP4),
    "nvfp4": (ExpertsSpec(), NVFP4),
    "formats of their own": (ExpertsSpec("sigmoid", "none"), "quantize-experts{format=mxfp4,experts=0+3}"),
    "sizes of their own": (ExpertsSpec(hidden_sizes=(44, 1, 9, 44, 20)), INT4),
}


@pytest.mark.nightly
@pytest.mark.parametrize("target", ["cuda:sm_80", "cuda:sm_90a"])
@pytest.mark.parametrize("name", ODD)
def test_odd_sizes_on_tensor_cores(without_nvcc, name, target):
    """Inputs, units and columns, including incomplete groups, are padded with the codes of zero."""
    (spec, passes), sizes = ODD[name], (57, 44)
    model = layer(spec, np.float16, *sizes)
    pipeline.run(model, pipeline.parse(passes))
    program = moec.compile(model, target=target, passes="", emulate=True)
    assert "pad_rows" in program.kernels and not any("simt" in kernel for kernel in program.kernels)
    for tokens in (0, 1, 20, 130):
        inputs = case(tokens, np.float16, sizes[0])
        y, expected = program.run(inputs)["y"], interpreter.run(model, inputs, dtype=np.float64)["y"]
        assert np.linalg.norm(y - expected) <= 4e-3 * np.linalg.norm(expected)


def test_zeros_stand_behind_what_a_matrix_has():
    codes = np.array([[1, 2], [3, 4]], np.uint8)
    assert filled(codes, 3, 4, np.array([[7], [8]], np.uint8)).tolist() == [[1, 2, 7, 7], [3, 4, 8, 8], [0, 0, 0, 0]]
    assert filled(codes, 2, 2) is codes


def test_hidden_units_that_would_count_when_others_are_rounded_are_not_added(program_of):
    program = program_of(layer(ExpertsSpec("sigmoid", "none", arithmetic="int8"), np.float16, 61, 43))
    assert "moe_grouped_gemm_simt" in {kernel.name for kernel in program.kernels}


@pytest.mark.parametrize(("architecture", "kernel"), [("sm_80", "grouped_gemm_mma"), ("sm_90a", "grouped_gemm_wgmma")])
def test_quantised_matrices_reach_tensor_cores(architecture, kernel):
    stored = PackedFormat("int4", 32, "float16")
    problem = GroupedProblem(8, 128, 256, 64, scattered=True, dtype="bfloat16", matrix_dtype="bfloat16", stored=stored)
    assert select(PRODUCTS, problem, architecture).kernel.name == kernel
    odd = dataclasses.replace(problem, stored=PackedFormat("int4", 20, "float16"))
    assert select(PRODUCTS, odd, architecture).kernel.name == "grouped_gemm_simt"


def test_units_that_are_not_there_cannot_be_rounded(program_of):
    model = layer(ExpertsSpec("sigmoid", "none", hidden_sizes=SIZES, arithmetic="int8"))
    with pytest.raises(UnsupportedError, match="sigmoid makes no zero of zero, hidden_sizes differ"):
        program_of(model)
