"""Weights of all experts as tensors [E,...]: proposals for ExpertsSpec's layouts, read from shapes alone."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from moec.ir.dialect import ExpertsSpec, GateLayout, LinearSpec, ProductSpec, is_moec, spec_of
from moec.ir.weights.stacks import expert_data
from moec.passes.raising.dataflow import Array, DataFlow, rank_of
from moec.passes.raising.failure import NotUnderstoodError
from moec.passes.raising.mlps import Mlp

FUSED_LAYOUTS: tuple[GateLayout, ...] = ("gate_up", "interleaved", "up_gate")


@dataclasses.dataclass(frozen=True)
class EntryPlace:
    """A piece of one expert's entry inside a constant: its first element, and the distance in elements to the next
    along each of its axes. ``at``: the index in the entry where the piece of this ``shape`` begins. Elements are
    multiplied by ``scale``."""

    part: ir.Value
    start: int
    strides: tuple[int, ...]
    shape: tuple[int, ...]
    at: tuple[int, ...]
    scale: float = 1.0

    @property
    def box(self) -> tuple[slice, ...]:
        """The indices of the entry that the piece holds."""
        return tuple(slice(first, first + size) for first, size in zip(self.at, self.shape, strict=True))

    def moved(self, counterparts: Mapping[ir.Value, ir.Value]) -> EntryPlace:
        """The same piece of another constant."""
        return dataclasses.replace(self, part=counterparts[self.part])

    @property
    def turned(self) -> EntryPlace:
        """The same piece of the transposed entry."""
        return EntryPlace(self.part, self.start, self.strides[::-1], self.shape[::-1], self.at[::-1], self.scale)

    def reaches(self) -> tuple[int, int]:
        """The first and the last element of the constant in the piece."""
        ends = [stride * (size - 1) for stride, size in zip(self.strides, self.shape, strict=True)]
        return self.start + sum(end for end in ends if end < 0), self.start + sum(end for end in ends if end > 0)


Entry = tuple[EntryPlace, ...]
"""The pieces of one expert's entry: one, or several that lie apart. Elements outside of all pieces are 0."""


@dataclasses.dataclass(frozen=True)
class ExpertTensor:
    """A tensor with one entry per expert along its first axis, read from one constant or from several.

    ``shape`` is [E,a,b] for weights and [E,a] for biases. ``factor`` [E] multiplies each expert's entry.
    """

    dataflow: DataFlow
    shape: tuple[int, ...]
    entries: tuple[Entry, ...]
    factor: ir.Value | None = None

    @property
    def parts(self) -> tuple[ir.Value, ...]:
        """The constants, each once."""
        return tuple(dict.fromkeys(place.part for entry in self.entries for place in entry))

    @functools.cached_property
    def is_as_stored(self) -> bool:
        """Whether the constant can be used unchanged."""
        part = self.parts[0]
        return (
            self.factor is None
            and len(self.parts) == 1
            and (part.const_value is not None or self.dataflow.stored(part) is not None)
            and self.dataflow.shape(part) == self.shape
            and self.entries == tuple(in_turn(part, self.shape))
        )

    @property
    def dtype(self) -> ir.DataType:
        dtype = self.parts[0].dtype
        return dtype if dtype is not None else ir.DataType.from_numpy(self.dataflow.array(self.parts[0]).dtype)

    def moved(self, counterparts: Mapping[ir.Value, ir.Value], dataflow: DataFlow) -> ExpertTensor:
        """The tensor of the same pieces of other constants."""
        factor = None if self.factor is None else counterparts[self.factor]
        entries = tuple(tuple(place.moved(counterparts) for place in entry) for entry in self.entries)
        return dataclasses.replace(self, dataflow=dataflow, entries=entries, factor=factor)

    def __getitem__(self, expert: int) -> Array:
        """One expert's entry, without reading others."""
        entry = self._entry(expert)
        if self.factor is None:
            return entry
        factor = self.dataflow.array(self.factor).ravel()
        return (entry * factor[expert]).astype(entry.dtype)

    @functools.cached_property
    def stored_dtype(self) -> ir.DataType:
        """The type of 16 bits that the experts' matrices are stored in, if nothing scales them; else :attr:`dtype`."""
        runs = [self.dataflow.stored(part) for part in self.parts]
        types = {None if run is None or run.format.quantized else run.data.dtype for run in runs}
        plain = self.factor is None and all(place.scale == 1 for entry in self.entries for place in entry)
        stored = next(iter(types)) if len(types) == 1 and plain and len(self.shape) == 3 else None
        return self.dtype if stored is None else stored

    def stored_entry(self, expert: int) -> Array:
        """One expert's entry in :attr:`stored_dtype`."""
        return self[expert] if self.stored_dtype == self.dtype else self._placed(expert, self.stored_dtype)

    def _entry(self, expert: int) -> Array:
        run = self.dataflow.stored(self.entries[expert][0].part)
        if self.is_as_stored and run is not None and rank_of(run) == 3:
            return run.decoded(expert)
        return self._placed(expert, self.dtype)

    def _placed(self, expert: int, dtype: ir.DataType) -> Array:
        places = self.entries[expert]
        if len(places) == 1 and places[0].shape == self.shape[1:]:
            return self._piece(places[0], dtype)
        entry = np.zeros(self.shape[1:], dtype.numpy())
        for place in places:
            entry[place.box] = self._piece(place, dtype)
        return entry

    def _piece(self, place: EntryPlace, dtype: ir.DataType) -> Array:
        whole = self._whole(place)
        if whole is not None:
            return whole.astype(dtype.numpy(), copy=False)
        array, first = self._around(place)
        strides = [stride * array.itemsize for stride in place.strides]
        piece = np.lib.stride_tricks.as_strided(array[place.start - first :], place.shape, strides, writeable=False)
        piece = piece.astype(dtype.numpy(), copy=False)
        return piece if place.scale == 1 else (piece * place.scale).astype(piece.dtype)

    def _whole(self, place: EntryPlace) -> Array | None:
        """The constant itself if the piece is all of it, in its order: a transposed weight stays a view."""
        if place.scale != 1 or (place.start, place.strides) != (0, strides_of(place.shape)):
            return None
        sizes, shape = (
            [size for size in sizes_of if size != 1] for sizes_of in (self.dataflow.shape(place.part), place.shape)
        )
        if sizes != shape or self.dataflow.stored(place.part) is not None:
            return None
        return self.dataflow.array(place.part).reshape(place.shape)

    def _around(self, place: EntryPlace) -> tuple[Array, int]:
        """Elements of the constant that hold the piece, and the place of its first element among them. If one index of
        the first axis holds the piece, only that is read: a constant that computes itself would otherwise compute all
        each time."""
        run = self.dataflow.stored(place.part)
        part = place.part if run is None or run.format.quantized else run.data
        shape = self.dataflow.shape(part)
        size = math.prod(shape[1:])
        first, last = (element // size for element in place.reaches()) if size else (0, -1)
        if part.const_value is not None and len(shape) > 1 and first == last:
            return np.ascontiguousarray(expert_data(part, first)).reshape(-1), first * size
        return np.ascontiguousarray(self.dataflow.array(part)).reshape(-1), 0


def strides_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Distance in elements to the next along each axis."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def in_turn(part: ir.Value, shape: tuple[int, ...], axis: int = 0) -> Iterator[Entry]:
    """Entries of a constant of this shape, along one of its axes."""
    strides = strides_of(shape)
    own, size = ((*of[:axis], *of[axis + 1 :]) for of in (strides, shape))
    for expert in range(shape[axis]):
        yield (EntryPlace(part, expert * strides[axis], own, size, (0,) * len(own)),)


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """A proposal for the experts' weights; the spec's activation is still open. ``ids``: the expert's id here for each
    id of the router, -1 for none; empty if they are equal."""

    spec: ExpertsSpec
    tensors: dict[str, ExpertTensor]
    ids: tuple[int, ...] = ()


def with_factor(arrangement: Arrangement, factor: ir.Value) -> Arrangement:
    """The arrangement with each expert's result multiplied by its entry of ``factor`` [E]."""
    scaled = {
        name: dataclasses.replace(tensor, factor=factor) if name in ("down", "down_bias") else tensor
        for name, tensor in arrangement.tensors.items()
    }
    return Arrangement(arrangement.spec, scaled)


def arrangements(dataflow: DataFlow, mlps: list[Mlp], E: int, d: int) -> Iterator[Arrangement]:
    """Every reading of the MLPs' weights as experts of hidden size d that their shapes allow."""
    weights = [_tensors(dataflow, [c.projections[i].weight for c in mlps], E, 3) for i in range(len(mlps[0].biases))]
    biases = [_bias(dataflow, [mlp.biases[i] for mlp in mlps], E) for i in range(len(weights))]
    products = _products(mlps)
    orders = [(None, 0, 1)] if len(weights) == 2 else [(0, 1, 2), (1, 0, 2)]
    for order in orders:
        gate, up, down = order
        for up_tensor, down_tensor in itertools.product(weights[up], weights[down]):
            for gate_tensor in [None] if gate is None else weights[gate]:
                tensors = {
                    "up": up_tensor,
                    "down": down_tensor,
                    "gate": gate_tensor,
                    "up_bias": biases[up],
                    "down_bias": biases[down],
                    "gate_bias": None if gate is None else biases[gate],
                }
                present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
                for spec in _specs(present, d):
                    yield Arrangement(dataclasses.replace(spec, **dataclasses.asdict(products)), present)


def _products(mlps: list[Mlp]) -> ProductSpec:
    """The arithmetic of the projections. Raises NotUnderstoodError unless it is the same for all."""
    nodes = [projection.node for mlp in mlps for projection in mlp.projections]
    linears = [spec_of(node, LinearSpec) if is_moec(node, "Linear") else ProductSpec() for node in nodes]
    specs = {ProductSpec(arithmetic=spec.arithmetic, activation_group=spec.activation_group) for spec in linears}
    if len(specs) > 1:
        raise NotUnderstoodError("its projections are computed in different arithmetics")
    return specs.pop()


def _tensors(dataflow: DataFlow, parts: list[ir.Value], E: int, rank: int) -> list[ExpertTensor]:
    """Readings of constants (one for all experts, or one each) as a tensor [E,...] of ``rank`` dimensions."""
    if len(set(parts)) > 1:
        shapes = {tuple(size for size in dataflow.shape(part) if size > 1) for part in parts}
        shape = (1, *next(iter(shapes)))
        if len(shapes) > 1 or len(shape) != rank:
            return []
        entries = tuple(entry for part in parts for entry in in_turn(part, shape))
        return [ExpertTensor(dataflow, (E, *shape[1:]), entries)]
    shape = tuple(size for size in dataflow.shape(parts[0]) if size > 1)
    axes = [axis for axis, size in enumerate(shape) if size == E] if len(shape) == rank else []
    if len(shape) == rank - 1 and shape[0] % E == 0:
        shape, axes = (E, shape[0] // E, *shape[1:]), [0]
    return [
        ExpertTensor(dataflow, (E, *shape[:axis], *shape[axis + 1 :]), tuple(in_turn(parts[0], shape, axis)))
        for axis in axes
    ]


def _bias(dataflow: DataFlow, parts: list[ir.Value | None], E: int) -> ExpertTensor | None:
    present = [part for part in parts if part is not None]
    if len(present) != len(parts) or not present:
        return None
    return next(iter(_tensors(dataflow, present, E, 2)), None)


def _specs(tensors: dict[str, ExpertTensor], d: int) -> Iterator[ExpertsSpec]:
    """Layouts and transpositions for which the shapes fit together."""
    up, down, gate = tensors["up"].shape, tensors["down"].shape, tensors.get("gate")
    for up_transposed, down_transposed in itertools.product((False, True), repeat=2):
        width_in, width = (up[1], up[2]) if up_transposed else (up[2], up[1])
        f, width_out = (down[1], down[2]) if down_transposed else (down[2], down[1])
        widths = {"up_bias": width, "gate_bias": width, "down_bias": d}
        if width_in != d or width_out != d or any(tensors[b].shape[1] != n for b, n in widths.items() if b in tensors):
            continue
        layouts: tuple[GateLayout, ...] = ()
        if gate is not None:
            layouts = ("separate",) if width == f and gate.shape == up else ()
        elif width == f:
            layouts = ("none",)
        elif width == 2 * f:
            layouts = FUSED_LAYOUTS
        for layout in layouts:
            yield ExpertsSpec(gate_layout=layout, up_transposed=up_transposed, down_transposed=down_transposed)
