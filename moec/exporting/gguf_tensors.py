"""Tensors and numbers of a GGUF file after passes, from its own tensors and the changes of its layers."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.exporting.form import ExportedPart
from moec.exporting.layer_changes import Change, LayerChange, tables_of
from moec.exporting.one_number import one_number
from moec.frontend.gguf.file.formats import FLOATS
from moec.frontend.gguf.file.packing import kind_of, pack, with_minima
from moec.frontend.gguf.file.reader import BLOCKS, GgufFile, GgufTensor
from moec.frontend.gguf.file.writer import NewGgufTensor, selected
from moec.frontend.gguf.graph.builder import Builder
from moec.ir import dialect
from moec.ir.dialect import EXPERT_WEIGHTS
from moec.ir.weights.stored import StoredWeight
from moec.passes.framework.base import Report

if TYPE_CHECKING:
    from moec.ir.weights.stored import WeightRun

Array = np.ndarray[Any, Any]
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_LEAST_IN_GROUP = 2
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 12}
_FILE_TYPES |= {"Q4_K": 15, "Q5_K": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30, "BF16": 32, "MXFP4": 38, "NVFP4": 39}
"""``general.file_type``: the type of most weights, which llama.cpp only prints."""
_WRITABLE = (
    "int4/32 (Q4_0), int4/32z (Q4_1), int4/32/256m (Q4_K), int5/32 (Q5_0), int5/32z (Q5_1), int5/32/256m (Q5_K), "
    "int6/16/256 (Q6_K), int8/32 (Q8_0), iq4/32 (IQ4_NL), iq4/32/256 (IQ4_XS), mxfp4 (MXFP4), fp16 and bf16"
)


@dataclasses.dataclass(frozen=True)
class DenseProduct:
    """A ``moec.Linear`` node, the weight that it was imported with, and the name of the tensor that this is."""

    node: ir.Node
    weight: ir.Value
    name: str

    @property
    def is_changed(self) -> bool:
        """Whether passes gave the product another weight since."""
        return self.node.inputs[1] is not self.weight


@dataclasses.dataclass(frozen=True)
class NewFile:
    """Contents of a file to write. ``numbers``: new values of metadata by key. ``tensors``: by name, in order."""

    numbers: Mapping[str, int]
    tensors: Mapping[str, NewGgufTensor]
    parts: list[ExportedPart]


def new_file(
    builder: Builder,
    layers: Sequence[tuple[LayerChange, Mapping[str, str]]],
    products: Sequence[DenseProduct],
    report: Report,
) -> NewFile:
    """Make the tensors after passes. ``layers``: the changes of the layers of experts, each with its tensors' names by
    operand. ``products``: those of :func:`dense_products`, before the passes.

    Raises UnsupportedError where layers differ in a number that the file has once, and for formats that GGUF does not
    have.
    """
    file = builder.file
    tensors = {name: NewGgufTensor.of(tensor) for name, tensor in file.tensors.items()}
    for change, names in layers:
        tensors |= {tensor: _changed(file.tensors[tensor], change.operands[name]) for name, tensor in names.items()}
    tensors |= _dense(file, products)
    numbers = _counts(builder, layers)
    if any(key.endswith("expert_count") for key in numbers):
        numbers |= _without_further_layers(builder, tensors, report)
    if any(tensors[name].kind != tensor.kind for name, tensor in file.tensors.items() if name in tensors):
        numbers |= _file_type(builder, tensors)
    parts = [ExportedPart(names["router"], _described(change, names, tensors)) for change, names in layers]
    return NewFile(numbers, tensors, parts)


def _changed(tensor: GgufTensor, change: Change) -> NewGgufTensor:
    if (copies := change.copies) is not None and copies == list(range(tensor.shape[0])):
        return NewGgufTensor.of(tensor)
    _check_whole(tensor)
    if copies is not None:
        return selected(tensor, copies)
    if isinstance(change.numbers, StoredWeight):
        return _stored(tensor.where, change.numbers, (len(change.copied), *tensor.shape[1:]))
    assert change.numbers is not None
    return _floats(tensor, change.numbers)


def _check_whole(tensor: GgufTensor) -> None:
    """Raise UnsupportedError for a tensor that others belong to, which would no longer fit."""
    if tensor.kind == "NVFP4":
        raise UnsupportedError(
            f"{tensor.where}: is NVFP4, whose floats are in a tensor of their own, and a pass changes it; export from "
            "a file in another format"
        )


def _floats(tensor: GgufTensor, numbers: Array) -> NewGgufTensor:
    """Numbers of a small tensor, in the type that it has."""
    if tensor.kind not in FLOATS:
        raise UnsupportedError(
            f"{tensor.where}: is {tensor.kind}, and a pass computed new numbers for it; nothing is rounded to that here"
        )
    return NewGgufTensor(tensor.kind, numbers.shape, lambda: (pack(tensor.kind, {"data": numbers}),))


def _stored(where: str, weight: StoredWeight, shape: tuple[int, ...]) -> NewGgufTensor:
    """A weight [E,out,in], or [out,in], in the format that passes gave it."""
    kinds = {_kind(where, run) for run in weight.runs}
    if len(kinds) > 1:
        raise UnsupportedError(
            f"{where}: its experts have the formats {', '.join(sorted(map(str, set(weight.formats))))}; a tensor of a "
            "GGUF file has one: give all experts of a layer the same, as by assign-bits{per_layer=true}"
        )
    (kind,) = kinds
    _, block, _ = next(entry for entry in BLOCKS.values() if entry[0] == kind)
    if shape[-1] % block:
        raise UnsupportedError(
            f"{where}: has rows of {shape[-1]} weights; {kind} needs a multiple of {block}: give these weights another "
            "format, such as fp16"
        )

    def parts() -> Iterator[Array]:
        for expert in range(weight.experts):
            matrix = weight.run_of(expert).encoded(expert)
            tables = {table: matrix.read(table) for table in tables_of(weight, expert)}
            try:
                stored = with_minima({table: array for table, array in tables.items() if array is not None})
            except ValueError as error:
                raise UnsupportedError(f"{where}: expert {expert} {error}; give it a format without z") from None
            yield pack(kind, stored)

    return NewGgufTensor(kind, shape, parts)


def _kind(where: str, run: WeightRun) -> str:
    form = run.format
    scale = run.scale if run.scale_levels is None else run.scale_levels.factors
    kind = kind_of(form, None if scale is None else scale.dtype)
    if kind is None:
        raise UnsupportedError(f"{where}: would be {form}, which GGUF does not have; nearest are {_WRITABLE}")
    return kind


def dense_products(builder: Builder, model: ir.Model) -> list[DenseProduct]:
    """The products of a model that was imported just now, except those of routers."""
    routers = {layer.names["router"] for layer in builder.expert_layers}
    weights = ((node, node.inputs[1]) for node in model.graph if dialect.is_moec(node, "Linear"))
    named = [(node, value, builder.matrices[value]) for node, value in weights if value in builder.matrices]
    return [DenseProduct(node, value, name) for node, value, name in named if name not in routers]


def _dense(file: GgufFile, products: Sequence[DenseProduct]) -> dict[str, NewGgufTensor]:
    """The weights of dense products that passes gave another format. A matrix that is an embedding, too, stays one and
    gets an output matrix beside it."""
    tensors: dict[str, NewGgufTensor] = {}
    for product in products:
        value = product.node.inputs[1]
        if not product.is_changed or value is None:
            continue
        tensor = file.tensors[product.name]
        _check_whole(tensor)
        target = _OUTPUT if product.name == _EMBEDDING else product.name
        tensors[target] = _stored(tensor.where, StoredWeight.of(value), tensor.shape)
    return tensors


def _counts(builder: Builder, layers: Sequence[tuple[LayerChange, Mapping[str, str]]]) -> dict[str, int]:
    """The numbers that metadata has once for all layers of experts, where they are others now."""
    if not layers:
        return {}
    metadata, where = builder.metadata, str(builder.file.path)
    named = [(names["router"], change) for change, names in layers]
    counts = {
        "expert_count": one_number(where, "experts", {name: change.count for name, change in named}),
        "expert_used_count": one_number(where, "experts for a token", {name: change.k for name, change in named}),
    }
    groups = one_number(where, "groups of experts", {name: change.groups for name, change in named})
    if groups > 1 and counts["expert_count"] // groups < _LEAST_IN_GROUP:
        raise UnsupportedError(
            f"{where}: would have {counts['expert_count']} experts in {groups} groups; llama.cpp rates a group by its "
            f"best {_LEAST_IN_GROUP}: keep more experts"
        )
    if groups > 1 or metadata.whole("expert_group_count", 0, least=0) > 1:
        counts["expert_group_count"] = groups
    named_counts = {f"{metadata.architecture}.{key}": number for key, number in counts.items()}
    return {key: number for key, number in named_counts.items() if builder.file.metadata.get(key) != number}


def _without_further_layers(builder: Builder, tensors: dict[str, NewGgufTensor], report: Report) -> dict[str, int]:
    """Remove the layers that predict further tokens: they have experts of the first number, which moec does not run."""
    if not builder.skipped:
        return {}
    for name in builder.skipped:
        del tensors[name]
    architecture = builder.metadata.architecture
    reason = "and the other tensors of layers that predict further tokens are left out: they have all experts"
    report.warn("export", builder.skipped[0], reason)
    return {f"{architecture}.block_count": builder.layers, f"{architecture}.nextn_predict_layers": 0}


def _file_type(builder: Builder, tensors: Mapping[str, NewGgufTensor]) -> dict[str, int]:
    sizes: collections.Counter[str] = collections.Counter()
    for tensor in tensors.values():
        sizes[tensor.kind] += tensor.size
    (kind, _), *_ = sizes.most_common(1)
    return {"general.file_type": _FILE_TYPES[kind]} if "general.file_type" in builder.file.metadata else {}


def _described(change: LayerChange, names: Mapping[str, str], tensors: Mapping[str, NewGgufTensor]) -> str:
    kinds = sorted({tensors[tensor].kind for name, tensor in names.items() if name in EXPERT_WEIGHTS[:3]})
    return f"layers of {change.count} experts in {' and '.join(kinds)}"
