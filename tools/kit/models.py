"""The models of the kit: layers of experts in each format, and what they take as inputs."""

from __future__ import annotations

import math
import pathlib
from typing import Any

EXPERTS, WIDTH, HIDDEN = 8, 256, 128
FORMATS = {
    "bfloat16": ("bfloat16", "O2"),
    "float32": ("float", "O2"),
    "float16": ("float16", "O2"),
    "int8": ("bfloat16", "O2,quantize-experts{format=int8}"),
    "int4": ("bfloat16", "O2,quantize-experts{format=int4,group=32}"),
    "mxfp4": ("bfloat16", "O2,quantize-experts{format=mxfp4}"),
    "fp8": ("bfloat16", "O2,quantize-experts{format=fp8,group=128},round-activations{format=fp8}"),
}
"""Formats of a layer, by their names in steps: the type of its numbers, and the passes."""
ATTENTION = "attention"
"""The name of the model of attention alone."""
_ATTENTION = """<ir_version: 10, opset_import: ["" : 24]>
attention (bfloat16[1,4,T,64] q, bfloat16[1,2,T,64] k, bfloat16[1,2,T,64] v,
           bfloat16[1,2,T,128] wide_q, bfloat16[1,1,T,128] wide_k, bfloat16[1,1,T,128] wide_v)
        => (bfloat16[1,4,T,64] y, bfloat16[1,2,T,128] wide_y) {
    y = Attention <is_causal = 1> (q, k, v)
    wide_y = Attention (wide_q, wide_k, wide_v)
}"""
_LAYER = """<ir_version: 10, opset_import: ["" : 24, "moec" : 1]>
layer ({dtype}[T,{width}] x, {dtype}[T,{experts}] logits) => ({dtype}[T,{width}] y) {{
    y = moec.MoE <k = {chosen}> (x, logits, , up, down)
}}"""


def make_layer(name: str, folder: pathlib.Path) -> pathlib.Path:
    """Write a SwiGLU layer with random weights as a model file."""
    import ml_dtypes
    import numpy as np
    import onnx

    dtype = FORMATS[name][0]
    path = folder / f"{name}.onnx"
    model = onnx.parser.parse_model(_LAYER.format(dtype=dtype, width=WIDTH, experts=EXPERTS, chosen=2))
    random, numbers = np.random.default_rng(0), {"float": np.float32, "bfloat16": ml_dtypes.bfloat16}
    for weight, shape in {"up": (EXPERTS, 2 * HIDDEN, WIDTH), "down": (EXPERTS, WIDTH, HIDDEN)}.items():
        array = (random.standard_normal(shape) / np.sqrt(shape[2])).astype(numbers.get(dtype, np.float16))
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, weight))
    onnx.save(model, path)
    return path


def make_attention(folder: pathlib.Path) -> pathlib.Path:
    """Write two attentions in bfloat16, one of them causal, as a model file: two sizes of heads."""
    import onnx

    path = folder / f"{ATTENTION}.onnx"
    onnx.save(onnx.parser.parse_model(_ATTENTION), path)
    return path


def any_layer(experts: int, chosen: int, width: int, hidden: int) -> Any:
    """Make a SwiGLU layer in bfloat16 as ONNX IR. Its weights are any numbers, which the kit does not keep; with zeros,
    hidden units would be removed."""
    import ml_dtypes
    import numpy as np
    import onnx_ir as ir

    from moec.ir.dialect import ExpertsSpec, RouteSpec, make_node

    kind = ir.TensorType(ir.DataType.BFLOAT16)
    values = {
        name: ir.Value(name=name, shape=ir.Shape(["T", size]), type=kind)
        for name, size in (("x", width), ("logits", experts))
    }
    weights, random = {}, np.random.default_rng(0)
    for name, shape in {"up": (experts, 2 * hidden, width), "down": (experts, width, hidden)}.items():
        bits = np.frombuffer(bytearray(random.bytes(2 * math.prod(shape))), np.uint16).reshape(shape)
        bits &= 0x83FF
        bits |= 0x3C00
        numbers = ir.tensor(bits.view(ml_dtypes.bfloat16), name=name)
        weights[name] = ir.Value(name=name, shape=ir.Shape(shape), type=kind, const_value=numbers)
    spec = RouteSpec(k=chosen, normalize=True)
    node = make_node("MoE", {**values, **weights}, spec, ExpertsSpec(), name="layer")
    node.outputs[0].name = "y"
    graph = ir.Graph(
        list(values.values()),
        node.outputs,
        nodes=[node],
        initializers=list(weights.values()),
        opset_imports={"": 24, "moec": 1},
        name="layer",
    )
    return ir.Model(graph, ir_version=10)
