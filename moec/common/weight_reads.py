"""Weights that one call of a product reads, for what it would read in another format."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from moec.common.kernel_sizes import evaluate, tensor_bytes
from moec.common.work import Argument, GroupedWork, MatmulWork, Work, WorkModel

_MATRIX = "matrix"
"""Name of the parameter that holds the weights in kernels of products on a GPU."""


@dataclasses.dataclass(frozen=True)
class WeightReads:
    """``count`` weights that take ``bytes``, scales included. ``inner``: inputs of their matrix, which scales are
    for."""

    count: float
    bytes: float
    inner: int

    def times(self, calls: float) -> WeightReads:
        return WeightReads(self.count * calls, self.bytes * calls, self.inner)

    def __add__(self, other: WeightReads) -> WeightReads:
        return WeightReads(self.count + other.count, self.bytes + other.bytes, self.inner)


def counted_reads(
    model: WorkModel | None, work: Work, arguments: Sequence[Argument], bits: Sequence[float]
) -> WeightReads | None:
    """Count the weights of a call by the model of its work; None for other kernels than products with weights.
    ``bits``: of a weight, for a product with one matrix."""
    if isinstance(model, MatmulWork) and bits:
        count = model.inner * model.width
        return WeightReads(count, count * bits[0] / 8, model.inner)
    if isinstance(model, GroupedWork):
        others = sum(argument.array.nbytes for argument in arguments if not argument.constant)
        bytewise = dataclasses.replace(model, weight_bits=(8.0,) * len(model.weight_bits)).of(arguments)
        return WeightReads(bytewise.bytes_moved - others, work.bytes_moved - others, model.inner)
    return None


def sized_reads(
    kernel: Mapping[str, Any],
    parameters: Sequence[Mapping[str, Any]],
    moved: Mapping[str, str],
    sizes: Mapping[str, int],
    where: str,
) -> WeightReads | None:
    """Count the weights of a call on a GPU, of which ``parameters`` are passed; None for other kernels than products.
    ``moved``: as :class:`moec.common.work.SizedWork` has it."""
    weights = [each for each in parameters if all(isinstance(size, int) for size in each["shape"])]
    matrix = next((each for each in weights if each["name"] == _MATRIX), None)
    attributes = kernel["attributes"]
    if matrix is None or not {"experts", "inner", "width", "gated"} <= attributes.keys():
        return None
    whole = math.prod(matrix["shape"])
    part = min(whole, evaluate(moved[_MATRIX], sizes, where)) / whole if _MATRIX in moved and whole else 1.0
    stored = attributes["experts"] * attributes["inner"] * attributes["width"] * (2 if attributes["gated"] else 1)
    return WeightReads(stored * part, tensor_bytes(weights, moved, sizes, where), attributes["inner"])
