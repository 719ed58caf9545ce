"""Dense products with quantised weights."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from moec.errors import UnsupportedError
from moec.ir.weights.stored import weight_runs
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import is_op
from moec.passes.weights.linears import is_dense_product, is_transposed, make_linear


@dataclasses.dataclass(frozen=True)
class FuseStoredWeights:
    """Lets products read quantised weights as they are stored, as quantisers in the QDQ format write them.

    1. A MatMul whose right matrix is ``DequantizeLinear`` of constants becomes ``moec.Linear``, and so does a Gemm that
       multiplies by one and at most adds a bias [N]. A bias that an Add gives the MatMul joins it.
    2. The groups that share a scale lie along the inputs of the product; other weights stay as they are.

    ::

        (float[T,64] x) => (float[T,8] y) <int8[64,8] numbers, float[2,8] scales> {
           w = DequantizeLinear <axis = 0, block_size = 32> (numbers, scales)
           y = MatMul (x, w)
        }
            infer-shapes,fuse-stored-weights ->
        (float[T,64] x) => (float[T,8] y) <int8[64,8] numbers, float[2,8] scales> {
           w = DequantizeLinear <axis = 0, block_size = 32> (numbers, scales)
           y = moec.Linear <transposed = 1> (x, w)
        }
    """

    name: ClassVar[str] = "fuse-stored-weights"
    exactness: ClassVar[Exactness] = "reassociating"

    def apply(self, model: ir.Model, report: Report) -> bool:
        changed = False
        for node in list(model.graph):
            if node.graph is not None and is_dense_product(node) and _is_stored(node):
                make_linear(model.graph, node)
                changed = True
        return changed


def _is_stored(product: ir.Node) -> bool:
    """Whether the weight is quantised in groups of the product's inputs."""
    weight = product.inputs[1]
    if weight is None or not is_op(weight.producer(), "DequantizeLinear"):
        return False
    try:
        (run,) = weight_runs(weight)
    except UnsupportedError:  # it is computed, or quantised in a way that no kernel reads
        return False
    return run.axis == (0 if is_transposed(product) else 1)
