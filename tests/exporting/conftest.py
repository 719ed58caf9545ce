"""A small model with a layer of experts, as a file."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

E, K, D, F = 4, 2, 16, 32


@pytest.fixture(scope="session")
def model_path(tmp_path_factory) -> pathlib.Path:
    """A layer as an exporter leaves it, that computes every expert for every token: x [T,16] to y [T,16]."""
    random = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return (random.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)

    constants = {"k": np.array([K]), "last": np.array([-1]), "zero": np.zeros(1, np.float32), "gate": weight(D, E)}
    nodes = [
        ("MatMul", "x gate", "logits", {}),
        ("Softmax", "logits", "scores", {}),
        ("TopK", "scores k", "best ids", {}),
        ("ReduceSum", "best last", "sum", {}),
        ("Div", "best sum", "shares", {}),
        ("Shape", "scores", "shape", {}),
        ("ConstantOfShape", "shape", "none", {}),
        ("ScatterElements", "none ids shares", "dense", {"axis": 1}),
    ]
    for expert in range(E):
        constants |= {f"up{expert}": weight(D, F), f"down{expert}": weight(F, D), f"at{expert}": np.array([expert])}
        nodes += [
            ("MatMul", f"x up{expert}", f"u{expert}", {}),
            ("Relu", f"u{expert}", f"h{expert}", {}),
            ("MatMul", f"h{expert} down{expert}", f"d{expert}", {}),
            ("Gather", f"dense at{expert}", f"w{expert}", {"axis": 1}),
            ("Mul", f"d{expert} w{expert}", f"p{expert}", {}),
        ]
    nodes.append(("Sum", " ".join(f"p{expert}" for expert in range(E)), "y", {}))
    graph = helper.make_graph(
        [
            helper.make_node(op, taken.split(), results.split(), **attributes)
            for op, taken, results, attributes in nodes
        ],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", D])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["T", D])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    path = tmp_path_factory.mktemp("exporting") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path
