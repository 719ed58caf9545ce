"""Steps that an expert applies to its rows, and their combination to the steps of one graph for all experts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Sequence

import numpy as np
import onnx_ir as ir

from moec.ir.dialect import ProductSpec
from moec.passes.raising.dataflow import Array, DataFlow
from moec.passes.raising.failure import NotUnderstoodError
from moec.passes.raising.weights import EntryPlace, ExpertTensor, in_turn

PLAIN = ProductSpec()
ROWS = 0
"""Number of the step whose result are the rows of x."""
PRODUCT = "Product"
"""Rows times a matrix, and a bias if there is one; all other steps are operators of ONNX."""


def whole(value: ir.Value, shape: tuple[int, ...]) -> EntryPlace:
    """All of a constant, reshaped without changing the order of elements: to a matrix [K,N], or to a vector [n] or a
    number that is combined with each row."""
    ((place,),) = in_turn(value, (1, *shape))
    return place


Operand = int | tuple[int, ...] | EntryPlace | ExpertTensor | None
"""The result of a step by its number; integers; a constant, of one expert or shared by all; one of all experts."""


@dataclasses.dataclass(frozen=True)
class Step:
    """An operator on rows [R,...]. ``attributes`` by name. ``dtype`` and ``width`` are those of the result, None if
    unknown."""

    operator: str
    inputs: tuple[Operand, ...]
    attributes: tuple[tuple[str, Hashable], ...] = ()
    product: ProductSpec = PLAIN
    dtype: ir.DataType | None = None
    width: int | None = None

    @property
    def kind(self) -> Hashable:
        """Key that is equal for steps that differ only in their constants."""
        places = tuple(operand if isinstance(operand, int | tuple | None) else "constant" for operand in self.inputs)
        return self.operator, places, self.attributes, self.product


def joined(dataflow: DataFlow, experts: Sequence[Sequence[Step]]) -> list[Step]:
    """The steps of all experts at once; smaller experts are padded with zeros. Raises NotUnderstoodError if the steps
    differ."""
    first, *others = experts
    for other in others:
        if [step.kind for step in other] != [step.kind for step in first]:
            raise NotUnderstoodError("its experts do not all consist of the same operators")
    combined = []
    for steps in zip(*experts, strict=True):
        operands = zip(*(step.inputs for step in steps), strict=True)
        inputs = tuple(_joined(dataflow, steps[0], operand) for operand in operands)
        widths = [step.width for step in steps if step.width is not None]
        combined.append(dataclasses.replace(steps[0], inputs=inputs, width=max(widths, default=None)))
    return combined


def _joined(dataflow: DataFlow, step: Step, operands: tuple[Operand, ...]) -> Operand:
    first = operands[0]
    if not isinstance(first, EntryPlace):
        return first
    places = [place for place in operands if isinstance(place, EntryPlace)]
    if all(place == first for place in places) or _same_number(dataflow, places):
        return first
    shapes = [place.shape or (1,) for place in places]
    if len({len(shape) for shape in shapes}) > 1:
        raise NotUnderstoodError(f"{step.operator} of some of its experts takes a matrix, of others a vector")
    largest = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    return ExpertTensor(dataflow, (len(places), *largest), tuple((_as_row(place),) for place in places))


def _as_row(place: EntryPlace) -> EntryPlace:
    return place if place.shape else dataclasses.replace(place, strides=(1,), shape=(1,), at=(0,))


def _same_number(dataflow: DataFlow, places: list[EntryPlace]) -> bool:
    if any(math.prod(place.shape) != 1 for place in places):
        return False
    return len({(float(numbers_of(dataflow, place).reshape(())), place.shape) for place in places}) == 1


def numbers_of(dataflow: DataFlow, place: EntryPlace) -> Array:
    """The elements of a constant."""
    tensor = ExpertTensor(dataflow, (1, *(place.shape or (1,))), ((_as_row(place),),))
    return np.asarray(tensor[0]).reshape(place.shape)


def shared(step: Step) -> bool:
    """Whether the step is the same for all experts, including its constants."""
    return not any(isinstance(operand, ExpertTensor) for operand in step.inputs)
