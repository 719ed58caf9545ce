"""A layer of experts as a model."""

from __future__ import annotations

import numpy as np
import onnx.parser

LAYER = """<ir_version: 10, opset_import: ["" : 21, "moec" : 1]>
layer (float[6,16] x, float[16,4] router, float[4,8,16] up, float[4,16,8] down,
        float[4,8,16] gate) => (float[6,16] y) {
    logits = MatMul (x, router)
    y = moec.MoE <k = 2, gate_layout = "separate"> (x, logits, , up, down, gate)
}"""


def layer_model(seed: int = 0) -> onnx.ModelProto:
    """Make a layer of four experts for six rows, with weights by this seed."""
    random = np.random.default_rng(seed)
    proto = onnx.parser.parse_model(LAYER)
    for value in list(proto.graph.input)[1:]:
        shape = [size.dim_value for size in value.type.tensor_type.shape.dim]
        proto.graph.initializer.append(onnx.numpy_helper.from_array(random.normal(size=shape).astype("f"), value.name))
        proto.graph.input.remove(value)
    return proto
