"""Layers whose products are computed in fp8, compiled for several GPUs and run in the emulator."""

from __future__ import annotations

import numpy as np
import pytest

import moec
from moec.ir import interpreter
from moec.ir.dialect import ExpertsSpec
from moec.passes import pipeline

from .test_stored_experts import case, layer

BLOCKS = "quantize-experts{format=fp8,group=128},round-activations"
FEW_PER_COLUMN = f"quantize-experts{{format=fp8,experts=1}},{BLOCKS}"
TOLERANCES = {np.float32: 1e-3, np.float16: 1e-2}
"""Tolerances by type. Hidden values near a rounding boundary may be rounded to either side, and 16-bit values were
rounded before."""


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("architecture", "passes", "dtype", "sizes", "rows"),
    [
        ("sm_90a", BLOCKS, np.float16, (256, 256), {"float8_e4m3fn"}),
        pytest.param("sm_89", BLOCKS, np.float32, (256, 128), {"float8_e4m3fn"}, marks=pytest.mark.nightly),
        pytest.param("sm_80", BLOCKS, np.float16, (256, 128), {"float16"}, marks=pytest.mark.nightly),
        # the last group is padded with zeros
        pytest.param("sm_90a", BLOCKS, np.float16, (250, 121), {"float8_e4m3fn"}, marks=pytest.mark.nightly),
        # 64 hidden units are less than a group
        pytest.param(
            *("sm_89", FEW_PER_COLUMN, np.float16, (128, 64), {"float8_e4m3fn", "float16"}), marks=pytest.mark.nightly
        ),
    ],
)
def test_a_layer_of_experts(without_nvcc, architecture, passes, dtype, sizes, rows):
    """The numbers of tokens cover pair by pair, and blocks of 16 and of 64 rows."""
    model = layer(ExpertsSpec(), dtype, *sizes)
    pipeline.run(model, pipeline.parse(passes))
    program = moec.compile(model, target=f"cuda:{architecture}", passes="", emulate=True)
    assert {kernel["attributes"].get("dtype") for kernel in program.describe()["kernels"]} - {None} == rows
    words = [candidate["reason"] for kernel in program.describe()["kernels"] for candidate in kernel["candidates"]]
    for reason, is_there in (
        ("kept as bytes", "float8_e4m3fn" in rows),
        ("kept as floats (the code is for sm_80; products in fp8 need sm_89 or newer)", architecture == "sm_80"),
        ("kept as floats (64 inputs are no multiple of 128)", sizes == (128, 64)),
    ):
        assert any(reason in word for word in words) == is_there
    for tokens in (0, 3, 20, 130):
        inputs = case(tokens, dtype, sizes[0])
        y, expected = program.run(inputs)["y"], interpreter.run(model, inputs, dtype=np.float64)["y"]
        assert np.linalg.norm(y - expected) <= TOLERANCES[dtype] * np.linalg.norm(expected)
