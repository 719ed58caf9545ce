"""Layers of experts in the tensors of a checkpoint: what belongs to which layer, and the tensors after passes."""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.mapped_files import release_pages
from moec.exporting.compressed_tensors import packed_tensors
from moec.exporting.layer_changes import LayerChange, LayerState
from moec.exporting.part_layouts import PartLayout, layout_of
from moec.frontend.huggingface.checkpoint.safetensors import FileTensor, NewTensor
from moec.frontend.huggingface.checkpoint.weights import CheckpointWeight
from moec.ir.expert_weights import Part
from moec.ir.weights.encode import Table, decode
from moec.ir.weights.format import WeightFormat
from moec.ir.weights.lazy import LazyMatrix

Array = np.ndarray[Any, Any]
_LAYER = re.compile(r"(.*?\.\d+)\.")
_ROUTING = ("router", "router_bias", "correction_bias")


@dataclasses.dataclass(frozen=True)
class ExpertAxis:
    """A weight of a checkpoint with an entry for each expert.

    ``names``: one weight for each expert, or a single one with ``axis`` for all of them; ``blocks``: entries of that
    axis that belong to one expert together. ``more``: entries of identity experts, behind the others.
    """

    names: tuple[str, ...]
    axis: int = 0
    blocks: int = 1
    more: int = 0

    @property
    def stacked(self) -> bool:
        return len(self.names) == 1


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """``weights``: by the names that they have as floats. ``tensors``: those of the files, by name. ``parts``: the
    tensors that make each weight."""

    weights: Mapping[str, CheckpointWeight]
    tensors: Mapping[str, FileTensor]
    parts: Mapping[str, Sequence[str]]

    def entry(self, place: ExpertAxis, expert: int) -> Array:
        """The numbers of one expert in float32."""
        weight = self.weights[place.names[0 if place.stacked else expert]]
        if not place.stacked:
            return _decoded(weight, lambda table: weight.tables[table].read())
        if place.axis == 0 and place.blocks == 1:
            return _decoded(weight, lambda table: weight.tables[table].entry(expert))
        rows = range(expert * place.blocks, (expert + 1) * place.blocks)
        taken = _decoded(weight, lambda table: np.take(weight.tables[table].read(), rows, place.axis))
        return taken if place.blocks > 1 else taken.squeeze(place.axis)


def _decoded(weight: CheckpointWeight, read: Any) -> Array:
    if weight.form is None:
        return np.asarray(read("data")).astype(np.float32)
    matrix = LazyMatrix(lambda table: read(table) if table in weight.tables else None)
    return decode(matrix, weight.form, weight.axis)


@dataclasses.dataclass(frozen=True)
class Piece:
    """A weight of a layer, and what it holds: ``layout`` of matrices or of biases (``is_bias``) of its experts, or
    ``routing``, an entry of the router. Neither: numbers that are something else for each expert."""

    place: ExpertAxis
    layout: PartLayout | None = None
    is_bias: bool = False
    routing: str = ""


def by_layer(places: Mapping[str, Sequence[ExpertAxis]]) -> list[list[ExpertAxis]]:
    """Group weights, given by the parameters that they become, by their layers, in the order of these."""
    layers: dict[str, list[ExpertAxis]] = collections.defaultdict(list)
    for parameter, own in places.items():
        layers[layer_of(parameter)].extend(own)
    return [layers[name] for name in sorted(layers, key=_natural)]


def layer_of(name: str) -> str:
    """The layer that a tensor belongs to; its own name where that has no number."""
    match = _LAYER.match(name)
    return match[1] if match else name


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def pieces_of(checkpoint: Checkpoint, places: Sequence[ExpertAxis], state: LayerState) -> list[Piece]:
    """Find out what the weights of a layer are, by comparing them with the layer of the graph.

    Raises UnsupportedError where none of them has the numbers of the graph's experts.
    """
    pieces = [_piece(checkpoint, place, state) for place in places]
    matrices = {part for piece in pieces if piece.layout and not piece.is_bias for part in piece.layout.parts}
    if not matrices:
        name = checkpoint.weights[places[0].names[0]].where
        raise UnsupportedError(
            f"{name}: its layer has other numbers than the layer of experts in the graph that would be its own; export "
            "for onnxruntime instead"
        )
    return pieces


def _piece(checkpoint: Checkpoint, place: ExpertAxis, state: LayerState) -> Piece:
    first, last = (checkpoint.entry(place, expert) for expert in (0, state.count - 1))
    for is_bias in (False, True):
        layout = layout_of(first, parts_of(state, 0, is_bias))
        if layout is not None and np.array_equal(
            layout.of(parts_of(state, state.count - 1, is_bias)), last, equal_nan=True
        ):
            return Piece(place, layout, is_bias)
    for name in _ROUTING:
        rows = routing_rows(state, name)
        if rows is not None and rows[0].shape == first.shape and np.array_equal(rows[0], first):
            return Piece(place, routing=name)
    return Piece(place)


def parts_of(state: LayerState, expert: int, are_biases: bool = False) -> dict[Part, Array]:
    """The matrices [in,out] of an expert, or its biases [out], by part."""
    if not are_biases:
        return {part: state.parts.decoded(part, expert) for part in state.parts.parts}
    biases = {part: state.parts.bias(part) for part in state.parts.parts}
    return {part: bias[expert].astype(np.float32) for part, bias in biases.items() if bias is not None}


def routing_rows(state: LayerState, name: str) -> Array | None:
    """Parameters of a router, one entry for each expert, in float32: rows of its matrix, biases, correction biases."""
    if name == "correction_bias":
        return None if state.correction_bias is None else state.correction_bias.astype(np.float32)
    if state.router is None:
        return None
    return state.router.weight.T if name == "router" else state.router.bias


def tensors_after(checkpoint: Checkpoint, piece: Piece, change: LayerChange) -> dict[str, NewTensor]:
    """The tensors of a weight after the passes, by name. Raises UnsupportedError for new numbers of a weight that is
    quantised, or whose meaning is not known."""
    copied = _copied(piece, change)
    place = piece.place
    if all(expert is not None for expert in copied):
        behind = range(change.before.count, change.before.count + place.more) if len(copied) == change.count else ()
        experts = [*(expert for expert in copied if expert is not None), *behind]
        if len(experts) != change.count + place.more:
            where = checkpoint.weights[place.names[0]].where
            raise UnsupportedError(
                f"{where}: has {place.more} entries behind those of experts, and the router of the graph "
                f"{len(experts) - change.count}; export for onnxruntime instead"
            )
        return _copies(checkpoint, place, experts)
    weight = checkpoint.weights[place.names[0]]
    if (piece.layout is None and not piece.routing) or (piece.layout is not None and place.more):
        raise UnsupportedError(f"{weight.where}: what it is for an average of experts is not known; prune instead")
    _check_every_expert(checkpoint, piece, change.before)
    if (form := quantised_form(piece, change)) is not None:
        return _packed(weight, piece, change, form)
    dtype = _dtype(weight, piece, change)
    if not place.stacked:
        makers = [functools.partial(_new, piece, change, expert) for expert in range(change.count)]
        pairs = zip(place.names, makers, strict=False)
        return {name: _tensor(dtype, weight.data.shape, [make]) for name, make in pairs}
    if place.axis:
        raise UnsupportedError(f"{weight.where}: has experts along axis {place.axis}, where only copies are written")
    makers = [functools.partial(_new, piece, change, expert) for expert in range(len(copied))]
    return {place.names[0]: _tensor(dtype, (len(copied) * place.blocks, *weight.data.shape[1:]), makers)}


def _check_every_expert(checkpoint: Checkpoint, piece: Piece, before: LayerState) -> None:
    """Raise UnsupportedError where the meaning of a weight, found from two of its experts, does not hold for all."""
    for expert in range(before.count if piece.layout is not None else 0):
        assert piece.layout is not None
        expected = piece.layout.of(parts_of(before, expert, piece.is_bias))
        if not np.array_equal(expected, checkpoint.entry(piece.place, expert), equal_nan=True):
            where = checkpoint.weights[piece.place.names[0]].where
            raise UnsupportedError(f"{where}: expert {expert} has other numbers in the graph; prune instead")
        release_pages()


def quantised_form(piece: Piece, change: LayerChange) -> WeightFormat | None:
    """The format of numbers with scales that passes gave a weight; None where they did not. Raises UnsupportedError
    where its parts or experts have several."""
    if piece.layout is None or piece.is_bias:
        return None
    names = {_operand(change, part) for part in piece.layout.parts}
    before, after = (
        {form for name in names for form in state.weights[name].formats} for state in (change.before, change.after)
    )
    if before == after or not any(form.quantized for form in after):
        return None
    (form, *others) = after
    if others:
        raise UnsupportedError(
            f"node {change.before.node.name}: its experts have the formats {', '.join(sorted(map(str, after)))}; a "
            "layer of a folder has one for each of its matrices: give all experts the same"
        )
    return form


def _packed(weight: CheckpointWeight, piece: Piece, change: LayerChange, form: WeightFormat) -> dict[str, NewTensor]:
    """The tensors of a weight that passes quantised."""
    layout, place = piece.layout, piece.place
    assert layout is not None
    if weight.form is not None:
        raise UnsupportedError(f"{weight.where}: is quantised already; export from the folder that is not")
    if place.stacked or not layout.turned or layout.axis:
        raise UnsupportedError(
            f"{weight.where}: would be {form}, but holds all experts of its layer; only matrices of single experts can "
            "be quantised in a folder: leave it in floats, or export a GGUF file"
        )
    run = change.after.weights[_operand(change, layout.parts[0])].runs[0]
    assert run.scale is not None and run.scale.dtype is not None
    tensors: dict[str, NewTensor] = {}
    for expert, name in enumerate(place.names[: change.count]):
        read = functools.partial(_table, change, layout, expert)
        tensors |= packed_tensors(name, form, run.scale.dtype, weight.data.shape, read)
    return tensors


def _table(change: LayerChange, layout: PartLayout, expert: int, table: Table) -> Array:
    """A table [out, ...] of an expert's matrix in the file."""
    tables = {part: change.after.parts.encoded(part, expert).read(table) for part in layout.parts}
    return layout.of({part: array for part, array in tables.items() if array is not None})


def _operand(change: LayerChange, part: Part) -> str:
    """The operand that holds a part."""
    return "up" if change.after.experts.fused and part == "gate" else part


def _tensor(dtype: ir.DataType, shape: tuple[int, ...], makers: Sequence[Any]) -> NewTensor:
    kind = dtype.numpy()
    return NewTensor(dtype, shape, lambda: (make().astype(kind) for make in makers))


def _copied(piece: Piece, change: LayerChange) -> Sequence[int | None]:
    """The source's expert whose entry each expert has."""
    if piece.layout is None:
        return change.operands[piece.routing or "router"].copied
    names = {_operand(change, part) for part in piece.layout.parts}
    changes = [change.operands[f"{name}_bias" if piece.is_bias else name].copied for name in sorted(names)]
    return [entry[0] if len(set(entry)) == 1 else None for entry in zip(*changes, strict=True)]


def _dtype(weight: CheckpointWeight, piece: Piece, change: LayerChange) -> ir.DataType:
    """The type of new numbers: that of the file, unless a pass cast the weights to another one."""
    if weight.form is not None:
        raise UnsupportedError(
            f"{weight.where}: is quantised, and passes computed new numbers for it; export from the folder that is not "
            "quantised"
        )
    if piece.layout is None or piece.is_bias:
        return weight.data.dtype
    name = _operand(change, piece.layout.parts[0])
    forms = [set(state.weights[name].formats) for state in (change.before, change.after)]
    if forms[0] == forms[1]:
        return weight.data.dtype
    (form, *others) = forms[1]
    if others:
        raise UnsupportedError(
            f"{weight.where}: would be {', '.join(sorted(map(str, forms[1])))}; a folder of floats has fp16, bf16 or "
            "fp32, the same for all experts of a tensor"
        )
    return form.data_type


def _new(piece: Piece, change: LayerChange, expert: int) -> Array:
    if piece.layout is not None:
        return piece.layout.of(parts_of(change.after, expert, piece.is_bias))
    rows = routing_rows(change.after, piece.routing)
    assert rows is not None
    return rows[expert]


def _copies(checkpoint: Checkpoint, place: ExpertAxis, experts: Sequence[int]) -> dict[str, NewTensor]:
    if not place.stacked:
        pairs = zip(place.names, experts, strict=False)
        return dict(pair for name, e in pairs for pair in _renamed(checkpoint, place.names[e], name))
    rows = [expert * place.blocks + row for expert in experts for row in range(place.blocks)]
    return {name: _selected(checkpoint.tensors[name], place.axis, rows) for name in checkpoint.parts[place.names[0]]}


def _renamed(checkpoint: Checkpoint, old: str, new: str) -> Iterator[tuple[str, NewTensor]]:
    """The tensors of one expert's weight, under the names of another's."""
    for mine, theirs in zip(checkpoint.parts[old], checkpoint.parts[new], strict=True):
        yield theirs, NewTensor.of(checkpoint.tensors[mine])


def _selected(tensor: FileTensor, axis: int, rows: Sequence[int]) -> NewTensor:
    array = tensor.numpy()
    if axis >= array.ndim or array.shape[axis] <= max(rows):
        raise UnsupportedError(f"{tensor.where}: is {list(array.shape)}, not with an entry for each expert")
    shape = (*array.shape[:axis], len(rows), *array.shape[axis + 1 :])
    if axis:
        return NewTensor(tensor.dtype, shape, lambda: (np.take(array, rows, axis),))
    return NewTensor(tensor.dtype, shape, lambda: (array[row] for row in rows))
