"""Labels of products' axes: an einsum over them computes what the operator does."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest

from moec.ir.product_labels import labels_of

Array = np.ndarray


def computed(labels: Sequence[str] | None, operands: Sequence[Array]) -> Array:
    """The einsum over these labels, of which those for dots become letters."""
    assert labels is not None
    *terms, result = (label.translate({1: "P", 2: "Q", 3: "R"}) for label in labels)
    return np.einsum(f"{','.join(terms)}->{result}", *operands)


def normal(*shape: int) -> Array:
    return np.random.default_rng(shape).normal(size=shape)


def matrices(rank: int, rows: int, columns: int, vector: int) -> Array:
    """An operand of MatMul whose axes before the last two are the trailing ones of (2, 3)."""
    return normal(*(2, 3)[4 - rank :], rows, columns) if rank > 1 else normal(vector)


@pytest.mark.parametrize(("left", "right"), list(itertools.product([1, 2, 3, 4], repeat=2)))
def test_a_product_of_matrices(left: int, right: int) -> None:
    a, b = matrices(left, 4, 5, vector=5), matrices(right, 5, 6, vector=5)
    labels = labels_of(ir.node("MatMul", [None, None]), [left, right])
    np.testing.assert_allclose(computed(labels, [a, b]), a @ b)


@pytest.mark.parametrize(("first", "second"), list(itertools.product([0, 1], repeat=2)))
def test_a_gemm_adds_what_has_the_axes_of_its_result(first: int, second: int) -> None:
    a, b = normal(4, 5), normal(5, 6)
    labels = labels_of(ir.node("Gemm", [None] * 3, {"transA": first, "transB": second}), [2, 2, 2])
    assert labels is not None and labels[2] == labels[3]
    operands = [a.T if first else a, b.T if second else b]
    np.testing.assert_allclose(computed([*labels[:2], labels[3]], operands), a @ b)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("te, ed -> td", [(3, 4), (4, 5)]),
        ("...te,ed->...td", [(2, 3, 4), (4, 5)]),
        ("...te,...ed->t...d", [(7, 2, 3, 4), (2, 4, 5)]),  # dots of two axes and of one share the last
    ],
)
def test_an_equation(equation: str, shapes: list[tuple[int, ...]]) -> None:
    operands = [normal(*shape) for shape in shapes]
    labels = labels_of(ir.node("Einsum", [None, None], {"equation": equation}), [len(shape) for shape in shapes])
    np.testing.assert_allclose(computed(labels, operands), np.einsum(equation.replace(" ", ""), *operands))


@pytest.mark.parametrize("equation", ["tt,td->td", "te,ed", "te,ed,d->t"])
def test_an_equation_that_has_no_such_labels(equation: str) -> None:
    assert labels_of(ir.node("Einsum", [None, None], {"equation": equation}), [2, 2]) is None
