"""Section ``layers``: the parts of a model in order, with their kernels, weights, formats and times."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from moec import targets
from moec.common.errors import MoecError, UnsupportedError
from moec.common.names import node_name
from moec.exploring.kernel_runs import kernels_of
from moec.exploring.subject import Subject
from moec.exploring.times import RunTimes, times_of
from moec.ir.graphs import read_values
from moec.ir.structure import Part, parts_of
from moec.ir.weight_operands import stored_weights, weight_inputs
from moec.ir.weights.format import WeightFormat

_TITLES = {
    "embedding": "Embedding",
    "attention": "Attention",
    "recurrent": "Recurrence",
    "moe": "MoE block",
    "shared": "Shared experts",
    "dense": "Dense layer",
    "head": "Head",
    "rest": "Norms and rest",
}


@dataclasses.dataclass(frozen=True)
class _Stored:
    """Storage of a constant: the format that it belongs to, and the bits of a number."""

    form: str
    bits: int


def layers(subject: Subject) -> dict[str, Any] | None:
    """List the parts of the model, layer by layer, as plain data.

    Each has a ``kind`` and a ``layer`` as :class:`moec.ir.structure.Part`, a ``title``, the number of its MoE
    ``block`` (None for other parts), the numbers of the parts whose floats it ``reads``, the names of its ``nodes`` and
    ``kernels``, the bytes of its weights as the model has them (by ``formats``, and in all), ``shared_bytes`` of
    weights that a part before has, too, and ``microseconds``, by ``cases``. ``cases`` are runs that were measured, or
    predicted from ``limits``; where there is none, ``no_times`` says why. ``stored_bytes``: of all weights in the
    artifact, in the layout of its kernels. Returns None for an artifact without the text of its model.
    """
    manifest, graph = subject.artifact.manifest, subject.graph
    if graph is None:
        return None
    parts = parts_of(graph, {state.input for state in manifest.states})
    cases, reason = _cases(subject)
    blocks = {block["name"]: number for number, block in enumerate(subject.description["moe_blocks"])}
    types = targets.kind_of(manifest.target).weight_types(subject.description)
    kernels, stored = kernels_of(subject), _stored(graph) | _stored_anew(parts, types)
    return {
        "parts": [
            _part(part, blocks, kernels, cases, stored, reads) for part, reads in zip(parts, _reads(parts), strict=True)
        ],
        "cases": [
            {"title": case.title, "measured": case.is_measured, "limits": case.limits, "microseconds": case.whole}
            for case in cases
        ],
        "no_times": reason,
        "stored_bytes": sum(weight.bytes for weight in manifest.weights),
    }


def _cases(subject: Subject) -> tuple[list[RunTimes], str | None]:
    try:
        return times_of(subject), None
    except MoecError as error:
        return [], str(error)


def _part(
    part: Part,
    blocks: Mapping[str, int],
    kernels: Sequence[Mapping[str, Any]],
    cases: Sequence[RunTimes],
    stored: Mapping[ir.Value, _Stored],
    reads: Sequence[int],
) -> dict[str, Any]:
    names = [node_name(node) for node in part.nodes]
    own = set(names)
    formats: dict[str, int] = {}
    for weight in filter(_is_weight, part.weights):
        form = _storage(weight, stored).form
        formats[form] = formats.get(form, 0) + _bytes(weight, stored)
    return {
        "title": _TITLES[part.kind],
        "kind": part.kind,
        "layer": part.layer,
        "block": next((blocks[name] for name in names if name in blocks), None),
        "reads": reads,
        "nodes": names,
        "kernels": [kernel["name"] for kernel in kernels if not own.isdisjoint(kernel["nodes"])],
        "weight_bytes": sum(formats.values()),
        "shared_bytes": sum(_bytes(weight, stored) for weight in filter(_is_weight, part.shared)),
        "formats": formats,
        "microseconds": [case.of(part.kind, names) for case in cases],
    }


def _reads(parts: Sequence[Part]) -> list[list[int]]:
    """Number the other parts whose floats each part reads."""
    place_of = {value: place for place, part in enumerate(parts) for node in part.nodes for value in node.outputs}
    results = []
    for place, part in enumerate(parts):
        values = (value for node in part.nodes for value in read_values(node) if value in place_of)
        floats = (value for value in values if value.dtype is None or value.dtype.is_floating_point())
        results.append(sorted({place_of[value] for value in floats} - {place}))
    return results


def _is_weight(value: ir.Value) -> bool:
    """Whether a constant is a weight, and no shape, axis or index: floats, or a matrix of small integers."""
    if value.const_value is None or value.dtype is None:
        return False
    return value.dtype.is_floating_point() or (value.dtype.bitwidth <= 8 and len(value.const_value.shape) > 1)


def _stored(graph: ir.Graph) -> dict[ir.Value, _Stored]:
    """Look up the format that each constant of a stored weight belongs to: its numbers, of which only the bits in use
    count, its scales and its minima."""
    constants: dict[ir.Value, _Stored] = {}
    for node in graph.all_nodes():
        with contextlib.suppress(UnsupportedError):
            for run in (run for weight in stored_weights(node).values() for run in weight.runs):
                for value in (run.scale, run.zero_point, run.minimum):
                    if value is not None and value.dtype is not None:
                        constants[value] = _Stored(str(run.format), value.dtype.bitwidth)
                constants[run.data] = _Stored(str(run.format), run.format.elements.bits)
    return constants


def _stored_anew(parts: Sequence[Part], types: Mapping[str, str]) -> dict[ir.Value, _Stored]:
    """Look up the formats of matrices that a target rounds itself: of the blocks, or else the parts, of these nodes."""
    constants: dict[ir.Value, _Stored] = {}
    for part in parts:
        for node in part.nodes:
            if form := types.get(node_name(node)):
                weights = weight_inputs(node).values() or part.weights
                matrices = (value for value in weights if value.shape is not None and len(value.shape) > 1)
                constants |= dict.fromkeys(matrices, _Stored(form, WeightFormat.parse(form).elements.bits))
    return constants


def _storage(weight: ir.Value, stored: Mapping[ir.Value, _Stored]) -> _Stored:
    assert weight.dtype is not None
    return stored.get(weight, _Stored(weight.dtype.numpy().name, weight.dtype.bitwidth))


def _bytes(weight: ir.Value, stored: Mapping[ir.Value, _Stored]) -> int:
    assert weight.const_value is not None
    return math.ceil(weight.const_value.size * _storage(weight, stored).bits / 8)
