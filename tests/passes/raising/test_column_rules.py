"""Columns that are not made alike leave a block without a miniature."""

import numpy as np
import pytest

from moec.passes.raising.column_rules import Columns, numbers_of_copy

from .wide_experts import ALIKE, DOWN, PLAIN, D, F, block_of, text_of, weights_of

UP = "l_{e} = MatMul (x, up_{e})\n"
RELU = "a_{e} = Relu (z_{e})\n" + DOWN
UNLIKE = {
    "a mask of columns": UP + "z_{e} = Mul (l_{e}, units)\n" + RELU,
    "bounds by column": UP + "z_{e} = Min (l_{e}, units)\n" + RELU,
    "a norm": UP + "z_{e} = LayerNormalization (l_{e}, units)\n" + RELU,
    "a softmax": UP + "z_{e} = Softmax <axis = -1> (l_{e})\n" + RELU,
    "the largest column": UP + "m_{e} = ReduceMax (l_{e}, minus_one)\n z_{e} = Sub (l_{e}, m_{e})\n" + RELU,
    "a sum of columns": UP + "m_{e} = ReduceSum (l_{e}, minus_one)\n z_{e} = Sub (l_{e}, m_{e})\n" + RELU,
    "some columns": UP + "p_{e} = Slice (l_{e}, zero, some, minus_one)\n q_{e} = Slice (l_{e}, some, end, minus_one)\n"
    "t_{e} = Tanh (p_{e})\n z_{e} = Concat <axis = -1> (t_{e}, q_{e})\n" + RELU,
    "columns as rows": UP + "t_{e} = Transpose <perm = [1, 0]> (l_{e})\n p_{e} = CumSum (t_{e}, scalar_zero)\n"
    "z_{e} = Transpose <perm = [1, 0]> (p_{e})\n" + RELU,
    "a reshape": UP + "p_{e} = Reshape (l_{e}, pairs)\n r_{e} = Relu (p_{e})\n z_{e} = Reshape (r_{e}, back)\n" + RELU,
    "a product with its own columns": UP
    + "t_{e} = Transpose <perm = [1, 0]> (l_{e})\n p_{e} = MatMul (l_{e}, t_{e})\n z_{e} = MatMul (p_{e}, l_{e})\n"
    + RELU,
    "a diagonal": UP + 'p_{e} = Einsum <equation = "tf,ff->tf"> (l_{e}, square)\n z_{e} = Identity (p_{e})\n' + RELU,
}
CONSTANTS = {
    "units": np.linspace(1, 2, F, dtype=np.float32),
    "square": np.ones((F, F), np.float32),
    "some": np.array([F // 4]),
    "pairs": np.array([-1, 2]),
    "back": np.array([-1, F]),
}


@pytest.fixture
def columns(build, texts, normal):
    def columns(body, other=None):
        model = build(text_of(texts["router"], body, other), f"T,{D}", **{**weights_of(normal), **CONSTANTS})
        block = block_of(model)
        used = {v for node in block.nodes for v in node.inputs if v is not None and block.dataflow.constant(v)}
        weights = {v for v in used if v.name.startswith(("up", "gate", "both", "down")) or v.name == "square"}
        return Columns(block, weights, {D: 24, F: 32, 2 * F: 64})

    return columns


@pytest.mark.parametrize("body", ALIKE.values(), ids=ALIKE)
def test_experts_whose_columns_are_alike(columns, body):
    assert numbers_of_copy(columns(body)) is not None


@pytest.mark.parametrize("body", UNLIKE.values(), ids=UNLIKE)
def test_experts_whose_columns_are_not(columns, body):
    """One expert of four is enough."""
    assert numbers_of_copy(columns(PLAIN + DOWN, body)) is None


def test_numbers_that_say_where_columns_are(columns):
    """The first half ends, and the second half begins, in the middle of the width of the copy."""
    result = numbers_of_copy(columns(ALIKE["slices"]))
    slices = [numbers for node, numbers in result.items() if node.op_type == "Slice"]
    bounds = {tuple(int(array[0]) for array in numbers.values()) for numbers in slices}
    assert bounds == {(0, 32), (32, 64)}
