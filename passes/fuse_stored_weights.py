"""Dense products with weights in fewer than 32 bits."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.names import node_name
from moec.ir.weights.stored import weight_runs, widens_halves
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import is_op
from moec.passes.weights.linears import is_dense_product, is_transposed, make_linear
from moec.passes.weights.scale_groups import put_in_groups


@dataclasses.dataclass(frozen=True)
class FuseStoredWeights:
    """Lets products read weights as they are stored: as quantisers in the QDQ format write them, or in 16 bits.

    1. A MatMul whose right matrix is ``DequantizeLinear`` of constants becomes ``moec.Linear``, and so does a Gemm that
       multiplies by one and at most adds a bias [N]. A bias that an Add gives the MatMul joins it.
    2. One scale per output of the product, or one for the whole matrix, becomes groups as large as there are inputs, or
       as kernels read them; zero points that are all zero are dropped from signed elements.
    3. The groups that share a scale lie along the inputs of the product; other weights stay as they are, with a note.
    4. A matrix that is ``Cast`` to float of a constant in float16 or bfloat16 is read in 16 bits likewise. The product
       is computed in float32, so nothing is rounded.

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
            if node.graph is None or not is_dense_product(node):  # an Add that became a bias is in no graph
                continue
            if widens_halves(_weight(node).producer()):
                make_linear(model.graph, node)
                changed = True
                continue
            if not is_op(_weight(node).producer(), "DequantizeLinear"):
                continue
            changed |= put_in_groups(model.graph, node, _input_axis(node))
            stays = _why_not(node)
            if stays is None:
                make_linear(model.graph, node)
                changed = True
            else:
                report.note(self.name, node_name(node), f"the product takes its weight as floats: {stays}")
        return changed


def _weight(product: ir.Node) -> ir.Value:
    weight = product.inputs[1]
    assert weight is not None
    return weight


def _input_axis(product: ir.Node) -> int:
    return 0 if is_transposed(product) else 1


def _why_not(product: ir.Node) -> str | None:
    """Why the weight is not quantised in groups of the product's inputs; None where it is."""
    try:
        (run,) = weight_runs(_weight(product))
    except UnsupportedError as error:  # it is computed, or quantised in a way that no kernel reads
        return str(error)
    return None if run.axis == _input_axis(product) else "its scales stand for groups of outputs"
