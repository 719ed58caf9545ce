"""Section ``layers``: the parts of a model in order, with their kernels, weights, formats and times."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from moec.common.errors import MoecError, UnsupportedError
from moec.common.names import node_name
from moec.exploring.structure import Part, parts_of
from moec.exploring.subject import Subject
from moec.exploring.times import RunTimes, kernels_of, times_of
from moec.ir.graphs import read_values
from moec.ir.weight_operands import stored_weights
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


def layers(subject: Subject) -> dict[str, Any] | None:
    """List the parts of the model, layer by layer, as plain data.

    Each has a ``kind`` and a ``layer`` as :class:`moec.exploring.structure.Part`, a ``title``, the number of its MoE
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
    kernels, stored = kernels_of(subject), _stored(graph)
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
    stored: Mapping[ir.Value, WeightFormat],
    reads: Sequence[int],
) -> dict[str, Any]:
    names = [node_name(node) for node in part.nodes]
    own = set(names)
    formats: dict[str, int] = {}
    for weight in filter(_is_weight, part.weights):
        form = str(stored.get(weight, weight.dtype.numpy().name if weight.dtype else "?"))
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
        "microseconds": [sum(case.nodes.get(name, 0.0) for name in names) for case in cases],
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


def _stored(graph: ir.Graph) -> dict[ir.Value, WeightFormat]:
    """Look up the format that each constant of a stored weight belongs to: its numbers, scales and minima."""
    formats = {}
    for node in graph.all_nodes():
        with contextlib.suppress(UnsupportedError):
            for weight in stored_weights(node).values():
                for run in weight.runs:
                    constants = [run.data, run.scale, run.zero_point, run.minimum]
                    formats |= {value: run.format for value in constants if value is not None}
    return formats


def _bytes(weight: ir.Value, stored: Mapping[ir.Value, WeightFormat]) -> int:
    """Bytes of a constant, of which only the bits that its format uses count."""
    tensor, form = weight.const_value, stored.get(weight)
    assert tensor is not None
    is_data = form is not None and tensor.dtype in (form.elements.signed, form.elements.unsigned)
    bits = form.elements.bits if form is not None and is_data else tensor.dtype.bitwidth
    return math.ceil(tensor.size * bits / 8)
