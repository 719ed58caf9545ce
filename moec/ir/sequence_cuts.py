"""Cuts of values into the parts that belong to each sequence of a model's inputs.

A value is *cut* along an axis if it is what the graph computes of each sequence alone, side by side along that axis.
:mod:`moec.ir.sequence_rules` says along which axis the results of an operator are cut, given the cuts of its operands.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence, Set
from typing import Literal

import onnx_ir as ir

from moec.common.guards import parse_size
from moec.ir.graphs import is_op
from moec.ir.weights.stored import constant

Kind = Literal["same", "cut", "sizes", "numbers", "places", "first rows", "rows"]


@dataclasses.dataclass(frozen=True)
class SequenceCut:
    """Relation of a value to the sequences.

    ``same``: equal for any sequences and any number of them. ``cut``: along ``axis``. ``sizes``: it depends on
    the number of sequences alone. ``numbers``: its elements are the numbers of sequences, which count along ``axis``.
    ``places``: its last axis has places in a value cut along axis 0: first the number of the sequence. ``first rows``
    and ``rows``: places in a value of ``step`` rows for each sequence, which count along ``axis``.
    """

    kind: Kind
    axis: int = 0
    step: int | str = 1


SAME, SIZES = SequenceCut("same"), SequenceCut("sizes")
_NAME = re.compile(r"[^\W\d]\w*")
_FUNCTIONS = {"Max", "Min", "Mod", "ceiling", "floor", "max", "min"}


def known_shape(value: ir.Value | None) -> list[int | str] | None:
    """Sizes of a value; None where one is unknown."""
    if value is None or value.shape is None:
        return None
    sizes = [size if isinstance(size, int) else size.value for size in value.shape]
    return None if None in sizes else [size for size in sizes if size is not None]


def size_names(size: int | str) -> set[str]:
    """List the names in a size, which is a number or an expression, also of functions that guards lack."""
    return set(_NAME.findall(str(size))) - _FUNCTIONS


class SizeNumbers:
    """Numbers in the place of named sizes: primes, which tell different products apart."""

    def __init__(self, counts: Set[str], names: Set[str]) -> None:
        self._counts, self._names = counts, names
        self._primes: dict[str, int] = {}

    def counts(self, size: int | str) -> bool:
        """Whether a size may depend on the number of sequences: it has that name, or one that no input has."""
        return self.is_unknown(size) or not self._counts.isdisjoint(size_names(size))

    def learn(self, size: int | str, counted: Iterable[int | str]) -> None:
        """Take a size without a known name, that of sequences beside others of sizes ``counted``, for their number if
        these are."""
        is_new = isinstance(size, str) and size_names(size) == {size} and self.is_unknown(size)
        if is_new and all(self.is_count(other) for other in counted):
            self._counts, self._names = self._counts | {str(size)}, self._names | {str(size)}

    def is_unknown(self, size: int | str) -> bool:
        return not size_names(size) <= self._names

    def product(self, sizes: Iterable[int | str], count: int = 1) -> int:
        """Multiply sizes, with ``count`` sequences."""
        return math.prod(self._number(size, count) for size in sizes)

    def is_cut(self, size: int | str) -> bool:
        """Whether a size is a multiple of the number of sequences."""
        single = self._number(size, 1)
        return not self._counts.isdisjoint(size_names(size)) and all(
            self._number(size, count) == count * single for count in (2, 5)
        )

    def is_count(self, size: int | str) -> bool:
        return self.is_cut(size) and self._number(size, 1) == 1

    def _number(self, size: int | str, count: int) -> int:
        if isinstance(size, int):
            return size
        numbers = {name: count if name in self._counts else self._prime(name) for name in size_names(size)}
        try:
            return parse_size(size)(numbers)
        except ValueError:  # a function that guards lack
            return self._prime(size)

    def _prime(self, name: str) -> int:
        if name not in self._primes:
            start = max(self._primes.values(), default=10_000) + 1
            primes = (n for n in range(start, 2 * start) if all(n % factor for factor in range(2, math.isqrt(n) + 1)))
            self._primes[name] = next(primes)
        return self._primes[name]


@dataclasses.dataclass(frozen=True)
class Use:
    """A node with the cuts of its operands, at least one of which is not ``same``."""

    node: ir.Node
    cuts: Sequence[SequenceCut]
    sizes: SizeNumbers

    def shape(self, place: int) -> list[int | str]:
        """Sizes of an operand; none where they are not known."""
        return known_shape(self.node.inputs[place]) or []

    @property
    def output(self) -> list[int | str]:
        return known_shape(self.node.outputs[0]) or []

    def integers(self, place: int, attribute: str = "") -> list[int] | None:
        """Constant integers of an operand, or of an attribute of older operators. None where they are not known."""
        stored = constant(self.node.inputs[place]) if place < len(self.node.inputs) else None
        if stored is not None:
            return [int(number) for number in stored.numpy().ravel()] if stored.dtype.is_integer() else None
        return list(self.node.attributes.get_ints(attribute, [])) or None if attribute else None

    def known_integers(self, place: int, attribute: str) -> list[int | None]:
        """Integers of an operand that may be joined of constants and others, which are None."""
        value = self.node.inputs[place] if place < len(self.node.inputs) else None
        joined = None if value is None else value.producer()
        parts = [value] if not is_op(joined, "Concat") else list(joined.inputs)
        integers: list[int | None] = []
        for part in parts:
            stored, shape = constant(part), known_shape(part)
            if stored is not None:
                integers += [int(number) for number in stored.numpy().ravel()]
            elif shape is not None and len(shape) == 1 and isinstance(shape[0], int):
                integers += [None] * shape[0]
            else:
                return []
        return integers or list(self.node.attributes.get_ints(attribute, []))

    def axis(self, default: int, rank: int) -> int:
        return self.node.attributes.get_int("axis", default) % max(1, rank)

    @property
    def first(self) -> SequenceCut:
        return self.cuts[0]

    def only_first(self) -> bool:
        """Whether no other operand depends on sequences."""
        return all(cut == SAME for cut in self.cuts[1:])

    def only_shaped(self) -> bool:
        """Whether other operands, which say the shape of the result, depend on the number of sequences alone."""
        return all(cut in (SAME, SIZES) for cut in self.cuts[1:])
