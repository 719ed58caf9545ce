"""Products of rows with constant matrices, otherwise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ..edit import Array, Operand, Writer, array_of, attribute, ints, nodes, rank, some, substitute
from ..registry import Rewrite, rewrite


class Linear:
    """``x [T,d] @ matrix [d,n] + bias [n]`` of a MatMul or a Gemm with constants."""

    def __init__(self, node: ir.Node, matrix: Array, bias: Array | None) -> None:
        self.node, self.matrix, self.bias = node, matrix, bias

    @property
    def x(self) -> ir.Value:
        value = self.node.inputs[0]
        assert value is not None
        return value


def linear_of(node: ir.Node) -> Linear | None:
    matrix = array_of(node.inputs[1])
    if rank(node.inputs[0]) != 2 or matrix is None or matrix.ndim != 2 or matrix.dtype != np.float32:
        return None
    if node.op_type == "MatMul":
        return Linear(node, matrix, None)
    bias = array_of(node.inputs[2]) if len(node.inputs) == 3 else None
    others = [attribute(node, name, default) for name, default in (("alpha", 1.0), ("beta", 1.0))]
    if attribute(node, "transA", 0) or others != [1.0, 1.0] or (len(node.inputs) == 3 and bias is None):
        return None
    return Linear(node, matrix.T if attribute(node, "transB", 0) else matrix, bias)


def linears(model: ir.Model) -> list[Linear]:
    result = map(linear_of, nodes(model, "MatMul", "Gemm"))
    return [linear for linear in result if linear is not None]


Spelling = Callable[[Writer, Linear], ir.Value]


def _of_linears(spelling: Spelling, allowed: Callable[[Linear], bool] = lambda _linear: True) -> Rewrite:
    """Another spelling of some products."""

    def apply(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
        chosen = some(random, filter(allowed, linears(model)))
        for linear in chosen:
            substitute(linear.node, spelling(Writer(model, linear.node), linear))
        return model if chosen else None

    apply.__name__ = spelling.__name__
    apply.__doc__ = spelling.__doc__
    return apply


def plus_bias(write: Writer, product: ir.Value, linear: Linear) -> ir.Value:
    return product if linear.bias is None else write.op("Add", product, linear.bias)


def product_as_convolution(write: Writer, linear: Linear) -> ir.Value:
    """Rows are images of one point; Conv of 1 x 1."""
    bias: list[Operand] = [] if linear.bias is None else [np.ravel(linear.bias)]
    if linear.bias is not None and linear.bias.size != linear.matrix.shape[1]:
        return write.op("Add", write.op("MatMul", linear.x, linear.matrix), linear.bias)
    kernel = np.ascontiguousarray(linear.matrix.T)[:, :, None]
    return write.op("Squeeze", write.op("Conv", write.op("Unsqueeze", linear.x, ints(2)), kernel, *bias), ints(2))


def rows_as_length_of_a_convolution(write: Writer, linear: Linear) -> ir.Value:
    """Rows are the places of one sequence [1,d,T]."""
    kernel = np.ascontiguousarray(linear.matrix.T)[:, :, None]
    sequence = write.op("Unsqueeze", write.op("Transpose", linear.x, perm=[1, 0]), ints(0))
    product = write.op("Squeeze", write.op("Conv", sequence, kernel), ints(0))
    return plus_bias(write, write.op("Transpose", product, perm=[1, 0]), linear)


def bias_as_a_row_of_the_weight(write: Writer, linear: Linear) -> ir.Value:
    """x is extended by a column of ones."""
    assert linear.bias is not None
    count = write.op("Shape", linear.x, start=0, end=1)
    ones = write.op("Expand", np.ones((1, 1), np.float32), write.op("Concat", count, ints(1), axis=0))
    row = np.broadcast_to(linear.bias, (1, linear.matrix.shape[1]))
    return write.op("MatMul", write.op("Concat", linear.x, ones, axis=1), np.concatenate([linear.matrix, row]))


def product_of_transposes(write: Writer, linear: Linear) -> ir.Value:
    """The transpose of the transposed weight times the transpose of x."""
    turned = write.op("MatMul", np.ascontiguousarray(linear.matrix.T), write.op("Transpose", linear.x, perm=[1, 0]))
    return plus_bias(write, write.op("Transpose", turned, perm=[1, 0]), linear)


def product_as_einsum(write: Writer, linear: Linear) -> ir.Value:
    return plus_bias(write, write.op("Einsum", linear.x, linear.matrix, equation="ab,bc->ac"), linear)


def product_as_gemm(write: Writer, linear: Linear) -> ir.Value:
    bias = [] if linear.bias is None else [linear.bias]
    return write.op("Gemm", linear.x, linear.matrix.copy(), *bias)


def product_as_matmul_and_add(write: Writer, linear: Linear) -> ir.Value:
    return plus_bias(write, write.op("MatMul", linear.x, linear.matrix.copy()), linear)


def weight_stored_transposed(write: Writer, linear: Linear) -> ir.Value:
    stored = write.constant(np.ascontiguousarray(linear.matrix.T))
    return plus_bias(write, write.op("MatMul", linear.x, write.op("Transpose", stored, perm=[1, 0])), linear)


def product_in_a_batch_of_one(write: Writer, linear: Linear) -> ir.Value:
    rows = write.op("Unsqueeze", linear.x, ints(0))
    return plus_bias(write, write.op("Squeeze", write.op("MatMul", rows, linear.matrix), ints(0)), linear)


def product_row_by_row(write: Writer, linear: Linear) -> ir.Value:
    """A batch of columns, one for each row of x."""
    matrix = np.ascontiguousarray(linear.matrix.T)
    column = write.op("MatMul", matrix, write.op("Unsqueeze", linear.x, ints(2)))
    return plus_bias(write, write.op("Squeeze", column, ints(2)), linear)


def product_as_sum_of_products(write: Writer, linear: Linear) -> ir.Value:
    """Multiplied elementwise and added up."""
    terms = write.op("Mul", write.op("Unsqueeze", linear.x, ints(2)), linear.matrix)
    return plus_bias(write, write.op("ReduceSum", terms, ints(1), keepdims=0), linear)


def product_of_two_shards(write: Writer, linear: Linear) -> ir.Value:
    """The rows of the weight in two parts, as tensor parallelism has them."""
    half = len(linear.matrix) // 2
    parts = write.ops("Split", 2, linear.x, ints(half, len(linear.matrix) - half), axis=1)
    products = [
        write.op("MatMul", part, matrix)
        for part, matrix in zip(parts, (linear.matrix[:half], linear.matrix[half:]), strict=True)
    ]
    return plus_bias(write, write.op("Add", *products), linear)


def outputs_in_two_shards(write: Writer, linear: Linear) -> ir.Value:
    """The columns of the weight in two parts, as tensor parallelism has them."""
    parts = np.array_split(linear.matrix, 2, axis=1)
    products = [write.op("MatMul", linear.x, np.ascontiguousarray(part)) for part in parts]
    return plus_bias(write, write.op("Concat", *products, axis=1), linear)


def _has_bias(linear: Linear) -> bool:
    return linear.bias is not None and linear.bias.ndim <= 2


def _may_be_empty(linear: Linear) -> bool:
    """Whether rows are those of one expert: onnxruntime refuses to convolve nothing."""
    model = linear.node.graph
    return model is not None and any(node.op_type == "NonZero" for node in model)


for _spelling in (
    product_as_convolution,
    product_of_transposes,
    product_as_einsum,
    product_as_matmul_and_add,
    weight_stored_transposed,
    product_in_a_batch_of_one,
    product_row_by_row,
    product_as_sum_of_products,
    product_of_two_shards,
    outputs_in_two_shards,
):
    rewrite(_of_linears(_spelling))
rewrite(_of_linears(bias_as_a_row_of_the_weight, _has_bias))
rewrite(_of_linears(rows_as_length_of_a_convolution, lambda linear: not _may_be_empty(linear)))
rewrite(_of_linears(product_as_gemm, lambda linear: linear.node.op_type == "MatMul"))

_EQUATIONS: dict[str, Callable[[Writer, ir.Value, ir.Value], ir.Value]] = {
    "td,edf->tef": lambda write, x, up: write.op(
        "Transpose", write.op("MatMul", write.op("Unsqueeze", x, ints(0)), up), perm=[1, 0, 2]
    ),
    "tef,efd->ted": lambda write, hidden, down: write.op(
        "Transpose", write.op("MatMul", write.op("Transpose", hidden, perm=[1, 0, 2]), down), perm=[1, 0, 2]
    ),
    "ted,te->td": lambda write, results, weights: write.op(
        "ReduceSum", write.op("Mul", results, write.op("Unsqueeze", weights, ints(2))), ints(1), keepdims=0
    ),
}


@rewrite
def einsum_as_products(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    chosen = some(random, [node for node in nodes(model, "Einsum") if node.attributes["equation"].value in _EQUATIONS])
    for node in chosen:
        left, right = node.inputs
        assert left is not None and right is not None
        substitute(node, _EQUATIONS[str(node.attributes["equation"].value)](Writer(model, node), left, right))
    return model if chosen else None


@rewrite
def addition_of_bias_into_gemm(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    """An Add after a MatMul that has no other user."""
    results = []
    for node in nodes(model, "Add"):
        for product, bias in (node.inputs, node.inputs[::-1]):
            array = array_of(bias)
            producer = None if product is None else product.producer()
            if array is None or array.ndim != 1 or producer is None or producer.op_type != "MatMul":
                continue
            linear = linear_of(producer)
            if linear is not None and len(producer.outputs[0].uses()) == 1 and array.size == linear.matrix.shape[1]:
                results.append((node, linear, array))
    chosen = some(random, results)
    for node, linear, array in chosen:
        substitute(node, Writer(model, node).op("Gemm", linear.x, linear.matrix.copy(), array))
    return model if chosen else None
