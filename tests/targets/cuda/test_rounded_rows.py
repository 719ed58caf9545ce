"""A model of onnxruntime's whose products round rows to int8, compiled for CUDA, as ``moec verify`` judges it."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx
import pytest

import moec
from moec.tools.verify import verify

from ..test_contrib import HEADER, D, E, normal, packed, qmoe

pytestmark = pytest.mark.nightly
SCALES = "experts_down_s"
PRODUCTS = 8


def model() -> onnx.ModelProto:
    """A chain of products with 4-bit weights, followed by experts with 8-bit weights. With many tokens, some numbers of
    the rows lie almost exactly between two int8 values, and may be rounded to either one."""
    experts, constants = qmoe("z", 8, 32, zeros=False)
    constants = {name.replace("z_", "experts_", 1): array for name, array in constants.items()}
    nodes, rows = [], "x"
    for seed in range(PRODUCTS):
        name, generator = f"h{seed}", np.random.default_rng(seed)
        stored = packed(name, 4, (D,), D, 2, zeros=False)
        stored[f"{name}_w"] = generator.integers(0, 256, (D, 2, D // 4), dtype=np.uint8)
        attributes = f"K = {D}, N = {D}, bits = 4, block_size = 32, accuracy_level = 4"
        nodes.append(f"{name} = com.microsoft.MatMulNBits <{attributes}> ({rows}, {', '.join(stored)})")
        nodes.append(f"t{seed} = Tanh ({name})")
        constants, rows = constants | stored, f"t{seed}"
    constants["router"] = normal(D, E)
    layer = experts.replace("z_", "experts_").replace("(x,", f"({rows},")
    body = f"{' '.join(nodes)} r = MatMul ({rows}, router) {layer}"
    proto = onnx.parser.parse_model(f"{HEADER}(float[T,{D}] x) => (float[T,{D}] {rows}, float[T,{D}] z) {{ {body} }}")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    return proto


def with_scale(proto: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """A copy of the model in which the scales of one expert are multiplied by ``factor``."""
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    (scales,) = (initializer for initializer in changed.graph.initializer if initializer.name == SCALES)
    numbers = onnx.numpy_helper.to_array(scales).copy()
    numbers[1] *= factor
    scales.CopyFrom(onnx.numpy_helper.from_array(numbers, SCALES))
    return changed


def test_rows_that_are_rounded_otherwise_are_right_and_a_wrong_scale_is_not(tmp_path: pathlib.Path) -> None:
    right, wrong = tmp_path / "right.onnx", tmp_path / "wrong.onnx"
    onnx.save(model(), right)
    onnx.save(with_scale(model(), 1.2), wrong)
    compiled = moec.compile(right, target="cuda:sm_90a", emulate=True)
    inputs = {"x": normal(300, D)}
    verification = verify(right, compiled, inputs)
    assert verification.spread and verification.matches and not verification.failures
    assert not verify(wrong, compiled, inputs).matches
