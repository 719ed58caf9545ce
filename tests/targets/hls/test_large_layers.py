"""A layer of a language model's real size, from ONNX to a project whose simulation matches. Takes minutes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as make
import pytest
from onnx import TensorProto

import moec
from moec.simulators.hls.simulate import simulate
from moec.targets.hls.options import HlsOptions

TOKENS, D, F, E, SLOTS = 16, 1024, 512, 32, 8
"""The sizes of Granite 3.0 1B-A400M."""


def granite_layer() -> onnx.ModelProto:
    """The layer ``y = MoE(RMSNorm(x)) + x`` with onnxruntime's operator."""
    random = np.random.default_rng(0)

    def constant(name: str, *shape: int) -> onnx.TensorProto:
        numbers = random.standard_normal(shape, np.float32) / np.sqrt(np.float32(shape[-1]))
        return onnx.numpy_helper.from_array(numbers, name)

    scale = onnx.numpy_helper.from_array(np.ones(D, np.float32), "scale")
    weights = [scale, constant("router", E, D), constant("up", E, 2 * F, D), constant("down", E, D, F)]
    nodes = [
        make.make_node("RMSNormalization", ["x", "scale"], ["normal"], axis=-1, epsilon=1e-6),
        make.make_node("Gemm", ["normal", "router"], ["logits"], transB=1),
        make.make_node(
            "MoE",
            ["normal", "logits", "up", "", "down"],
            ["sum"],
            domain="com.microsoft",
            k=SLOTS,
            activation_type="swiglu",
            swiglu_fusion=1,
            activation_alpha=1.0,
            activation_beta=0.0,
            normalize_routing_weights=1,
        ),
        make.make_node("Add", ["x", "sum"], ["y"]),
    ]
    x, y = (make.make_tensor_value_info(name, TensorProto.FLOAT, [TOKENS, D]) for name in "xy")
    graph = make.make_graph(nodes, "layer", [x], [y], weights)
    opsets = [make.make_opsetid("", 23), make.make_opsetid("com.microsoft", 1)]
    return make.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.nightly
@pytest.mark.parametrize("part", ["u50", "zcu102"])
def test_a_layer_of_granite(part):
    random = np.random.default_rng(1)
    inputs = {"x": random.standard_normal((TOKENS, D)).astype(np.float32)}
    artifact = moec.compile(granite_layer(), target=f"hls:{part}", target_options=HlsOptions(inputs)).artifact
    (result,) = simulate(artifact)
    assert result["passed"], result
    assert result["estimated"] == pytest.approx(result["cycles"], rel=0.05)
