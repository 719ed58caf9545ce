"""Layers whose rows have block scales, compiled for several GPUs and run in the emulator."""

from __future__ import annotations

import numpy as np
import pytest

import moec
from moec.ir import interpreter
from moec.ir.dialect import ExpertsSpec
from moec.passes import pipeline

from .test_stored_experts import case, layer

TOLERANCES = {"mxfp8": 1e-2, "mxfp4": 5e-2, "nvfp4": 5e-2}
"""Tolerances by arithmetic. Hidden values near a rounding boundary may be rounded to either side."""


def compiled(stored: str, arithmetic: str, architecture: str, dtype: type, *sizes: int):
    model = layer(ExpertsSpec(), dtype, *sizes)
    pipeline.run(model, pipeline.parse(f"quantize-experts{{format={stored}}},round-activations{{format={arithmetic}}}"))
    return model, moec.compile(model, target=f"cuda:{architecture}", passes="", emulate=True)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("stored", "arithmetic", "architecture", "dtype", "sizes"),
    [
        ("mxfp4", "mxfp8", "sm_120a", np.float16, (250, 121)),  # the last groups are padded with zeros
        ("nvfp4", "nvfp4", "sm_120a", np.float32, (256, 128)),
        ("mxfp4", "mxfp4", "sm_120a", np.float32, (64, 32)),
        ("mxfp4", "mxfp8", "sm_80", np.float16, (256, 128)),
        ("nvfp4", "nvfp4", "sm_120", np.float32, (96, 48)),
    ],
)
def test_a_layer_of_experts(without_nvcc, stored, arithmetic, architecture, dtype, sizes):
    """The numbers of tokens cover pair by pair, and blocks of 16 and of 64 rows."""
    model, program = compiled(stored, arithmetic, architecture, dtype, *sizes)
    kernels = program.describe()["kernels"]
    assert any("gemm_scaled" in kernel["name"] for kernel in kernels) == (architecture == "sm_120a")
    reasons = [candidate["reason"] for kernel in kernels for candidate in kernel["candidates"]]
    floats = f"kept as floats (the code is for {architecture}; products with block scales need sm_120a)"
    assert any(floats in reason for reason in reasons) == (architecture != "sm_120a")
    for tokens in (0, 3, 20, 130):
        inputs = case(tokens, dtype, sizes[0])
        y, expected = program.run(inputs)["y"], interpreter.run(model, inputs, dtype=np.float64)["y"]
        assert np.linalg.norm(y - expected) <= TOLERANCES[arithmetic] * np.linalg.norm(expected)
