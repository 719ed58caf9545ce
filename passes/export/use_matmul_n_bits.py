"""Dense products with quantised weights as onnxruntime's operator MatMulNBits."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.names import node_name
from moec.ir import dialect
from moec.ir.contrib_quantized import INT8_LEVEL
from moec.ir.dialect import ExpertsSpec, LinearSpec
from moec.ir.weights.stored import StoredWeight
from moec.passes.export.packed_experts import width_note
from moec.passes.export.packed_matrix import Digits, PackedMatrix, packed_matrix
from moec.passes.export.packed_rows import use_halves
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import remove_unused, replace_node, value_names
from moec.passes.graph.expert_body import activated
from moec.passes.graph.writer import Writer


@dataclasses.dataclass(frozen=True)
class UseMatMulNBits:
    """Writes ``moec.Linear`` with quantised weights as onnxruntime's ``com.microsoft.MatMulNBits``.

    1. Integers of 2 to 4 bits are packed in 4 bits, [N,blocks,bytes], with a scale for each block of a row. Zero points
       stay. Groups of weights are told in blocks of 16 to 256 inputs, in those with the fewest bytes.
    2. Integers of 5 to 8 bits become two products, of their upper and of their lower 4 bits, which are added
       (:mod:`moec.passes.export.packed_matrix`). Look-ups of rows of the same table take them from these.
    3. Where the node rounds its rows to 8 bits, ``accuracy_level`` 4 lets the kernel do so in its blocks, which are no
       larger than the node's; integers of 8 bits then are one product.
    4. Minima are multiplied with the sums of the inputs of each group, and subtracted.
    5. Weights that the operator does not have stay, and a note says why: floats, groups that cannot be told in blocks
       of 16.

    ::

        (float[T,32] x) => (float[T,2] y) <int4[2,32] w, float[2,2] scale> {
           d = DequantizeLinear <axis = 1, block_size = 16, output_dtype = 1> (w, scale)
           y = moec.Linear <arithmetic = "int8", activation_group = 16> (x, d)
        }
            infer-shapes,use-matmul-n-bits ->
        (float[T,32] x) => (float[T,2] y) <uint8[2,2,8] "y.data", float[2,2] "y.scale"> {
           y = com.microsoft.MatMulNBits <K = 32, N = 2, accuracy_level = 4, bits = 4, block_size = 16>
              (x, "y.data", "y.scale")
        }
    """

    name: ClassVar[str] = "use-matmul-n-bits"
    exactness: ClassVar[Exactness] = "reassociating"

    def apply(self, model: ir.Model, report: Report) -> bool:
        changed = False
        for node in [node for node in model.graph if dialect.is_moec(node, "Linear")]:
            matrix = _matrix(node)
            if matrix is None or isinstance(matrix, str):
                if matrix is not None:
                    report.note(self.name, node_name(node), matrix)
                continue
            rounded = dialect.spec_of(node, LinearSpec).arithmetic
            if rounded != LinearSpec.arithmetic and not matrix.rounds:
                report.note(self.name, node_name(node), f"its rows are not rounded to {rounded}, but kept in float32")
            if (note := width_note(matrix.form, matrix.bits)) is not None:
                report.note(self.name, node_name(node), note)
            operands = [value for value in node.inputs if value is not None]
            replace_node(node, [_spelled(Writer(node, value_names(model.graph)), matrix)])
            for value in dict.fromkeys(operands):
                remove_unused(model.graph, value)
            changed = True
        return changed


def _matrix(node: ir.Node) -> PackedMatrix | str | None:
    """The weight of a node; a reason where the operator does not have it, None for one of plain floats."""
    x, weight = dialect.inputs_of(node)["x"], dialect.inputs_of(node)["weight"]
    assert x is not None and weight is not None
    try:
        stored = StoredWeight.of(weight)
    except UnsupportedError:
        return None
    matrix = packed_matrix(stored, dialect.spec_of(node, LinearSpec))
    if isinstance(matrix, PackedMatrix) and matrix.form.minima and x.shape is None:
        return "the rank of its rows is not known"
    return matrix


def _spelled(write: Writer, matrix: PackedMatrix) -> ir.Value:
    inputs, spec = dialect.inputs_of(write.node), dialect.spec_of(write.node, LinearSpec)
    x, bias = inputs["x"], inputs["bias"]
    assert x is not None
    result = x.dtype or ir.DataType.FLOAT
    wide = x if result == ir.DataType.FLOAT else write.add("Cast", x, to=ir.DataType.FLOAT, label="wide")
    scales = matrix.scales(write)
    products = [_product(write, wide, matrix, digits, scales) for digits in matrix.digits]
    if len(products) == 2 and not matrix.transposed:
        high, low = (product.inputs[1] for product in products)
        assert high is not None and low is not None
        use_halves(matrix.stored.runs[0].data, matrix.size[1], high, low, matrix.offset)
    y, *others = [product.outputs[0] for product in products]
    for other in others:
        y = write.add("Add", y, other, label="product")
    if matrix.form.minima:
        y = write.add("Sub", y, _of_minima(write, wide, matrix, len(x.shape or ())), label="product")
    if bias is not None:
        wide_bias = bias if bias.dtype == ir.DataType.FLOAT else write.add("Cast", bias, to=ir.DataType.FLOAT)
        y = write.add("Add", y, wide_bias, label="biased")
    y = activated(write, ExpertsSpec(activation=spec.activation, gate_layout="none"), None, y, ir.DataType.FLOAT)
    return y if result == ir.DataType.FLOAT else write.add("Cast", y, to=result, label="narrow")


def _product(write: Writer, x: ir.Value, matrix: PackedMatrix, digits: Digits, scales: ir.Value) -> ir.Node:
    N, K = matrix.size
    named = {"K": K, "N": N, "bits": digits.bits, "block_size": matrix.block}
    if matrix.rounds:
        named["accuracy_level"] = INT8_LEVEL
    operands = [x, *matrix.operands(write, digits, scales)]
    product = ir.node("MatMulNBits", operands, named, domain="com.microsoft")
    write.insert(product, "product")
    return product


def _of_minima(write: Writer, x: ir.Value, matrix: PackedMatrix, rank: int) -> ir.Value:
    """The sums of the inputs of each group times the minima, [...,N]."""
    groups = matrix.size[1] // matrix.form.group
    shape = write.numbers(*[0] * (rank - 1), groups, matrix.form.group)
    sums = write.add("ReduceSum", write.add("Reshape", x, shape, label="groups"), write.numbers(-1), keepdims=0)
    return write.add("MatMul", sums, matrix.minima(write), label="minima")
