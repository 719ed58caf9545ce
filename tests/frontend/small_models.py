"""Models of few nodes with output y, and a check of their refusals."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from moec.common.errors import MoecError
from moec.frontend.onnx.importer import import_model

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def model_of(nodes, *, opset=17, initializers=(), functions=(), inputs=(("x", [None, 3]),), ir_version=10, imports=()):
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        list(initializers),
    )
    opsets = [helper.make_opsetid("", opset), *imports]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=ir_version)


def relu(**options):
    return model_of([helper.make_node("Relu", ["x"], ["y"], name="the_node")], **options)


def refuse(source, message, kind=MoecError):
    with pytest.raises(kind, match=message) as caught:
        import_model(source)
    assert "\n" not in str(caught.value)
