"""The axes of products in Einsum's labels: which of them operands share, and which are summed over."""

from __future__ import annotations

import string
from collections.abc import Sequence

import onnx_ir as ir

DOTS = "..."


def labels_of(node: ir.Node, ranks: Sequence[int]) -> list[str] | None:
    """The labels of the axes of each operand of a MatMul, Gemm or Einsum whose operands have ``ranks``, and last those
    of its result. A Gemm's third operand has the labels of the result. None for a label that stands twice in a term,
    and for an equation without a result."""
    if node.op_type == "MatMul":
        return _matmul_labels(*ranks)
    if node.op_type == "Gemm":
        turned = [node.attributes.get_int(name, 0) for name in ("transA", "transB")]
        return ["zy" if turned[0] else "yz", "xz" if turned[1] else "zx", *["yx"] * (len(ranks) - 1)]
    left, _, result = node.attributes.get_string("equation", "").replace(" ", "").partition("->")
    written = left.split(",")
    if not result or len(written) != len(ranks):
        return None
    dotted = [rank - len(term) + len(DOTS) for term, rank in zip(written, ranks, strict=True) if DOTS in term]
    others = [rank - len(term) + len(DOTS) for term, rank in zip(written, ranks, strict=True)]
    labels = [term.replace(DOTS, _dotted(count)) for term, count in zip(written, others, strict=True)]
    labels.append(result.replace(DOTS, _dotted(max(dotted, default=0))))
    return labels if all(len(set(term)) == len(term) for term in labels) else None


def _dotted(count: int) -> str:
    """Labels for so many axes that dots stand for (no letters of ASCII): the last ones are the same in all terms."""
    return "".join(chr(1 + place) for place in range(count))[::-1]


def _matmul_labels(left: int, right: int) -> list[str]:
    """The labels of a product of matrices of these ranks."""
    batch = string.ascii_lowercase[: max(left, right, 2) - 2]
    first = "z" if left == 1 else batch[len(batch) - (left - 2) :] + "yz"
    second = "z" if right == 1 else batch[len(batch) - (right - 2) :] + "zx"
    return [first, second, batch + ("" if left == 1 else "y") + ("" if right == 1 else "x")]
