"""What an input, an output or a parameter is: its name, its element type and its shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """An input or output. A dimension is an int, or a string naming a dynamic size (0 and up)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class State:
    """What a model keeps from one run for the next: its output ``output`` is given back as its input ``input``.

    ``axis``: the one along which new entries are written behind those of before, such as that of the tokens in keys and
    values; None where each run replaces the whole, as in recurrences."""

    input: str
    output: str
    axis: int | None

    def __str__(self) -> str:
        how = "replaced by each run" if self.axis is None else f"written along axis {self.axis}"
        return f"{self.input} <- {self.output}, {how}"


ROW_SCALE_BYTES = 2
"""What a row of int8 takes beside its numbers: the bfloat16 that they are multiplied with."""


@dataclasses.dataclass(frozen=True)
class HeldState:
    """A state that a program holds in place: what it takes for ``input`` is pages (:mod:`moec.targets.tvm.held_states`)
    of elements of ``dtype``, of which it uses as many numbers along ``axis`` as the input has, and behind which it
    writes ``growth`` more, an expression of the inputs' sizes; together they are ``output``.

    ``store``, ``restore``: the program's kernels (start, state, pages) and (pages, state) for runs that are given the
    state and return it; empty where elements are stored as they are. ``at_places``: what is new is written at places
    that the program computes, and what is not written is zero."""

    input: str
    output: str
    axis: int
    dtype: str
    growth: str
    store: str = ""
    restore: str = ""
    at_places: bool = False

    @property
    def has_room(self) -> bool:
        """Whether it has a size that stays, of which the model itself knows what is in use."""
        return self.growth == "0"

    def stored(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape in which a page of a state of this shape is stored: of int8 [*before, rows, row], the rows lie side
        by side, and behind them their scales."""
        if self.dtype != "int8":
            return tuple(shape)
        *before, rows, row = shape
        return (*before, rows * (row + ROW_SCALE_BYTES))

    def shape(self, stored: Sequence[int], row: int | str) -> tuple[int, ...]:
        """The shape of a state of which a page is stored in this one; ``row``: the size of its last axis."""
        if self.dtype != "int8":
            return tuple(stored)
        assert isinstance(row, int), "rows of int8 have a fixed size"
        return (*stored[:-1], stored[-1] // (row + ROW_SCALE_BYTES), row)


@dataclasses.dataclass(frozen=True)
class LastTokens:
    """That a program computes as many of the last positions of an ``output`` [batch, length, ...] as it is told, where
    it would compute one for each token of an ``input`` [batch, length]."""

    output: str
    input: str


@dataclasses.dataclass(frozen=True)
class StreamedWeight:
    """A weight that is read by expert. ``weight``: its position among those that the program takes; expert e has its
    bytes from ``starts[e]`` to ``starts[e + 1]``."""

    weight: int
    starts: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class StreamedExpertsSpec:
    """The experts of a layer whose weights need not be in memory until the program asks for them, by the position of
    the layer. ``chosen``: how many a token asks for at most. ``shares``: which share of the layer's tokens each
    expert had; empty where that was not measured. ``replaceable``: whether the router asks which are not in memory."""

    name: str
    chosen: int
    experts: int
    weights: tuple[StreamedWeight, ...]
    shares: tuple[float, ...] = ()
    replaceable: bool = False


def tensor_specs(values: Sequence[ir.Value]) -> list[TensorSpec]:
    """The specifications of graph inputs; a dimension without a name gets one of its own."""
    specs = []
    for value in values:
        name = value.name or ""
        sizes = value.shape or ()
        shape = tuple(
            size if isinstance(size, int) else size.value or f"{name}_{axis}" for axis, size in enumerate(sizes)
        )
        specs.append(TensorSpec(name, value.dtype.numpy().name if value.dtype else "float32", shape))
    return specs
