"""Models of one moec node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir.dialect import OUTPUTS, make_node

Array = np.ndarray[Any, Any]


def _value(name: str, array: Array, shape: list[int | str], constant: bool) -> ir.Value:
    type_ = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    return ir.Value(name=name, shape=ir.Shape(shape), type=type_, const_value=ir.tensor(array) if constant else None)


def node_model(operator: str, inputs: Mapping[str, Array], constants: Mapping[str, Array], *specs: Any) -> ir.Model:
    """The model whose only node has the named inputs (their first size is dynamic) and constants."""
    fed = {name: _value(name, array, ["T", *array.shape[1:]], False) for name, array in inputs.items()}
    fixed = {name: _value(name, array, list(array.shape), True) for name, array in constants.items()}
    node = make_node(operator, {**fed, **fixed}, *specs, name="block")
    for output, name in zip(node.outputs, OUTPUTS[operator], strict=True):
        output.name = name
    graph = ir.Graph(
        list(fed.values()),
        list(node.outputs),
        nodes=[node],
        initializers=list(fixed.values()),
        opset_imports={"": 24, "moec": 1},
    )
    return ir.Model(graph, ir_version=10)
