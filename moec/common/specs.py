"""Specifications of inputs, outputs, states and streamed weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from moec.common.dtypes import ElementType
from moec.common.records import Size

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of an input or output. A dimension is an int, or a string naming a dynamic size (0
    and up)."""

    name: str
    dtype: ElementType
    shape: tuple[Size | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class State:
    """State that a model keeps between runs: its output ``output`` is the next run's input ``input``.

    ``axis``: the axis along which new entries are appended, such as that of the tokens in keys and values; None where
    each run replaces the whole, as in recurrences.
    """

    input: str
    output: str
    axis: int | None

    def __str__(self) -> str:
        how = "replaced by each run" if self.axis is None else f"written along axis {self.axis}"
        return f"{self.input} <- {self.output}, {how}"


ROW_SCALE_BYTES = 2
"""Bytes of the bfloat16 scale that a row of int8 has in addition to its numbers."""


@dataclasses.dataclass(frozen=True)
class HeldState:
    """A state that a program holds in place, in pages (:mod:`moec.targets.tvm.lowering.held_states`) of elements of
    ``dtype``.

    The program takes pages for ``input``. Along ``axis`` it uses as many entries as the input has, and appends
    ``growth`` more, an expression of the inputs' sizes; together they are ``output``. ``store``, ``restore``: the
    program's kernels (start, state, pages) and (pages, state) for runs that take and return the state itself; empty
    where elements are stored unchanged. ``at_places``: new entries are written at places that the program computes, and
    all others are zero. ``window``: number of last entries that the program reads for each new one, that one included;
    0 where it reads all. Pages may then begin later, at the last page boundary before the first entry to read.
    """

    input: str
    output: str
    axis: int
    dtype: ElementType
    growth: str
    store: str = ""
    restore: str = ""
    at_places: bool = False
    window: Size = 0

    @property
    def has_room(self) -> bool:
        """Whether the state has a constant size, and the model itself knows which part is in use."""
        return self.growth == "0"

    def stored(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Compute the shape of a stored page from a state's shape. For int8 [*before, rows, row] the rows are
        contiguous and their scales follow them."""
        if self.dtype != "int8":
            return tuple(shape)
        *before, rows, row = shape
        return (*before, rows * (row + ROW_SCALE_BYTES))

    def shape(self, stored: Sequence[int], row: int | str) -> tuple[int, ...]:
        """Compute a state's shape from that of a stored page; ``row``: the size of the last axis."""
        if self.dtype != "int8":
            return tuple(stored)
        assert isinstance(row, int), "rows of int8 have a fixed size"
        return (*stored[:-1], stored[-1] // (row + ROW_SCALE_BYTES), row)


WANTED = "wanted"
"""Name of the size of a program that is the number of last tokens whose logits it computes."""


@dataclasses.dataclass(frozen=True)
class LastTokens:
    """Ability of a program to compute only the requested last positions of an ``output`` [batch, length, ...], instead
    of one for each token of an ``input`` [batch, length]. ``sample``: the program's kernel that selects tokens by an
    output of logits [batch, length, vocabulary]; empty where it has none."""

    output: str
    input: str
    sample: str = ""


@dataclasses.dataclass(frozen=True)
class StreamedWeight:
    """A weight that is read by expert. ``weight``: its position among the program's weights; expert e has the bytes
    from ``starts[e]`` to ``starts[e + 1]``."""

    weight: Size
    starts: tuple[Size, ...]


@dataclasses.dataclass(frozen=True)
class StreamedExpertsSpec:
    """The experts of a layer, by its position, whose weights need not be in memory until the program requests them.

    ``chosen``: most experts that a token selects. ``shares``: share of the layer's tokens that selected each expert;
    empty where that was not measured. ``replaceable``: whether the router asks which experts are not in memory.
    ``planned``: the number of the layer in the plan of experts, None where it has none.
    """

    name: str
    chosen: Size
    experts: Size
    weights: tuple[StreamedWeight, ...]
    shares: tuple[float, ...] = ()
    replaceable: bool = False
    planned: Size | None = None


HIDDEN, PREVIOUS_HIDDEN = "hidden", "previous_hidden"
"""Output of a model and of its MTP layer: hidden states [batch, length, width]; the layer's input that takes them."""
POSITIONS = "moec.positions"
"""Input of the graph of a batch, int64[1, T]: the number of each token in its sequence."""
JOINED, CONVOLVED, LAST = "moec.joined", "moec.convolved", "moec.last"
"""Inputs of the graph of a batch with convolutions (:mod:`moec.compiling.batch_states`): places int64[N * P + T] of
earlier and new inputs in the order of sequences, int64[T] of the results of tokens, int64[N, P] of the last inputs."""
SEQUENCES = "moec_sequences"
"""Size of the graph of a batch: number of sequences, N."""
BATCH_TENSORS = (
    "lengths",
    "spans",
    "table",
    "places",
    "window_table",
    "window_places",
    "rows",
    "entries_before",
    "entries_after",
)
"""Tensors that the program of a batch takes after the inputs of its graph (:mod:`moec.ir.batches`)."""


def tensor_specs(values: Sequence[ir.Value]) -> list[TensorSpec]:
    """Make the specifications of graph inputs; a dimension without a name gets one of its own."""
    specs = []
    for value in values:
        name = value.name or ""
        sizes = value.shape or ()
        shape = tuple(
            size if isinstance(size, int) else size.value or f"{name}_{axis}" for axis, size in enumerate(sizes)
        )
        specs.append(TensorSpec(name, value.dtype.numpy().name if value.dtype else "float32", shape))
    return specs
