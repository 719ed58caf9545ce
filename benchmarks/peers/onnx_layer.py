"""The layer as an ONNX model of one ``com.microsoft.MoE`` or ``com.microsoft.QMoE`` node."""

from __future__ import annotations

import pathlib

import numpy as np
from layers import Layer, Weights


def moe_model(weights: Weights) -> pathlib.Path:
    """Write a file with the layer in float32, unless it exists already."""
    path = weights.folder / "moe.onnx"
    if not path.exists():
        save(path, weights.layer, "MoE", {name: fused(weights, name) for name in ("fc1", "fc2")}, {})
    return path


def fused(weights: Weights, name: str) -> np.ndarray:
    """Stack ``fc1`` [E, 2f, d] with gate and up interleaved (without a gate [E, f, d]), or ``fc2`` [E, d, f]."""
    return weights.for_all_experts(fused_distinct(weights, name))


def fused_distinct(weights: Weights, name: str) -> np.ndarray:
    """Stack as :func:`fused`, but only the distinct experts."""
    if name == "fc2":
        return weights.projection("down")
    up = weights.projection("up")
    if not weights.layer.gated:
        return up
    interleaved = np.empty((len(up), 2 * up.shape[1], up.shape[2]), np.float32)
    interleaved[:, 0::2], interleaved[:, 1::2] = weights.projection("gate"), up
    return interleaved


def save(
    path: pathlib.Path, layer: Layer, operator: str, initializers: dict[str, np.ndarray], attributes: dict[str, int]
) -> None:
    """Write the model. ``initializers``: ``fc1`` and ``fc2``, for QMoE their scales (``fc1_scales``), for MoE maybe
    ``fc1_bias``."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    activation = (
        {"activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.0, "activation_beta": 0.0}
        if layer.gated
        else {"activation_type": "relu"}
    )
    quantized = operator == "QMoE"
    bias = "fc1_bias" if "fc1_bias" in initializers else ""
    weights = ["fc1", "fc1_scales", "", "fc2", "fc2_scales"] if quantized else ["fc1", bias, "fc2"]
    node = helper.make_node(
        operator, ["x", "logits", *weights], ["y"], "moe", domain="com.microsoft", k=layer.chosen,
        normalize_routing_weights=1, **activation, **attributes,
    )  # fmt: skip
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", layer.width]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["T", layer.experts]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["T", layer.width])]
    tensors = [numpy_helper.from_array(array, name) for name, array in initializers.items()]
    graph = helper.make_graph([node], "layer", inputs, outputs, tensors)
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.stem}.bin")
