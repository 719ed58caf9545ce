"""Dense products in ONNX operators."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.ir import dialect
from moec.ir.dialect import ExpertsSpec, LinearSpec
from moec.ir.weights.stored import StoredWeight
from moec.passes.export.function_bodies import calls_function
from moec.passes.export.stored_matrix import write_matrix
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import remove_unused, replace_node, value_names
from moec.passes.graph.expert_body import activated
from moec.passes.graph.writer import Writer


@dataclasses.dataclass(frozen=True)
class ExpandLinear:
    """Spells ``moec.Linear`` as MatMul, Add and its activation.

    1. A stored weight is written inputs first, [K,N], because MatMul takes it so. One of a narrower format has the bits
       that it is stored in, and is decoded by operators whose inputs are constants: onnxruntime computes these once, in
       float32, when it loads the model. Integers of 2 bits are stored in 4. Weights that something else uses, too,
       such as an embedding, stay as they are and get a Transpose, as do weights that are computed.

    ::

        (float[B,T,8] x) => (float[B,T,4] y) <float[4,8] w, float[4] b> {
           y = moec.Linear <activation = "relu"> (x, w, b)
        }
            ->
        (float[B,T,8] x) => (float[B,T,4] y) <float[8,4] "y.weight", float[4] b> {
           "y.product" = MatMul (x, "y.weight")
           "y.biased" = Add ("y.product", b)
           y = Relu ("y.biased")
        }
    """

    name: ClassVar[str] = "expand-linear"
    exactness: ClassVar[Exactness] = "reassociating"

    def apply(self, model: ir.Model, report: Report) -> bool:
        products = (node for node in model.graph.all_nodes() if dialect.is_moec(node, "Linear"))
        nodes = [node for node in products if not calls_function(model, node)]
        for node in nodes:
            graph = node.graph
            assert isinstance(graph, ir.Graph)
            operands = [value for value in node.inputs if value is not None]
            replace_node(node, [_spelled(Writer(node, value_names(model.graph)))])
            for value in dict.fromkeys(operands):
                remove_unused(graph, value)
        return bool(nodes)


def _spelled(write: Writer) -> ir.Value:
    spec, (x, weight, bias) = dialect.spec_of(write.node, LinearSpec), dialect.inputs_of(write.node).values()
    assert x is not None and weight is not None
    result = x.dtype or ir.DataType.FLOAT
    dtype = ir.DataType.DOUBLE if result == ir.DataType.DOUBLE else ir.DataType.FLOAT
    wide = x if result == dtype else write.add("Cast", x, to=dtype, label="wide")
    y = write.add("MatMul", wide, _weight(write, weight, spec.transposed, dtype), label="product")
    if bias is not None:
        bias = bias if bias.dtype in (dtype, None) else write.add("Cast", bias, to=dtype, label="wide_bias")
        y = write.add("Add", y, bias, label="biased")
    plain = ExpertsSpec(activation=spec.activation, gate_layout="none")
    y = activated(write, plain, None, y, dtype)
    return y if result == dtype else write.add("Cast", y, to=result, label="narrow")


def _weight(write: Writer, weight: ir.Value, transposed: bool, dtype: ir.DataType) -> ir.Value:
    """The weight [K,N] in ``dtype``."""
    try:
        return write_matrix(write, StoredWeight.of(weight), transposed, dtype)
    except UnsupportedError:
        wide = weight if weight.dtype == dtype else write.add("Cast", weight, to=dtype, label="wide_weight")
        return wide if transposed else write.add("Transpose", wide, perm=[1, 0], label="weight")
