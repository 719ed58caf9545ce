"""Small models from the text of their nodes, and constants by name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser
from numpy.typing import ArrayLike


def model_of(nodes: str, constants: Mapping[str, ArrayLike], inputs: str = "float[N,4] x") -> onnx.ModelProto:
    """Make a model that computes y by ``nodes``, at the working opset, with the constants that they use."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 24]> g ({inputs}) => (y) {{ {nodes} }}')
    give_constants(proto, constants)
    return proto


def give_constants(proto: onnx.ModelProto, constants: Mapping[str, ArrayLike]) -> None:
    """Make the constants that nodes of the graph use, not counting bodies, initializers of the graph."""
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items() if name in used
    )
