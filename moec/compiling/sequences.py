"""The size of a language model's inputs that counts its sequences, where each is computed as if it were alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import onnx_ir as ir

from moec.common.errors import InputError
from moec.common.names import node_name
from moec.common.specs import TensorSpec
from moec.ir.graphs import read_values
from moec.ir.sequence_cuts import SAME, SequenceCut, SizeNumbers, Use, known_shape, size_names
from moec.ir.sequence_rules import cut_of_results
from moec.passes.framework.base import Report
from moec.passes.infer_shapes import InferShapes
from moec.runtime.interface import Interface
from moec.runtime.roles import Roles, roles_of


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Sequences of a model. ``size``: the name that counts them; None where they are not split, for the reason
    ``why``."""

    size: str | None = None
    why: str = ""


def split_sequences(graph: ir.Model, interface: Interface, report: Report) -> str | None:
    """Find the named size of sequences that ranks share among them; None, with a warning, where one rank computes all
    of them."""
    sequences = sequences_of(graph, interface)
    if sequences.size is None:
        how = f"({sequences.why}): rank 0 computes all of them, and the others their experts alone"
        report.warn("place-experts", "", f"sequences are not split among the ranks {how}")
    return sequences.size


def sequences_of(graph: ir.Model, interface: Interface) -> Sequences:
    """Find the named size of the sequences of token ids [sequences, length], if each is computed as if it were alone.

    It is not for a model without token ids, for a fixed number of sequences, for inputs (except those that sessions
    fill) and outputs that do not have one part for each sequence, and where rules of operators
    (:mod:`moec.ir.sequence_rules`) do not prove it. Adds shapes to the values of ``graph``."""
    try:
        roles = roles_of(interface)
    except InputError as error:
        return Sequences(why=str(error))
    count = roles.ids.shape[0]
    if not isinstance(count, str):
        return Sequences(why=f"{roles.ids.name} has {count} of them, not a named number")
    for spec in (*interface.inputs, *interface.outputs):
        is_filled = spec.name in roles.filled
        if (count not in spec.shape and not is_filled) or _counts_otherwise(spec, count):
            return Sequences(why=f"{spec.name} does not have one part for each of them")
    InferShapes().apply(graph, Report())
    node = _combining_node(graph.graph, _cuts(graph.graph, interface, roles), _counts(roles))
    if node is not None:
        return Sequences(why=f"{node.op_type} {node_name(node)} may combine them")
    return Sequences(count)


def _counts_otherwise(spec: TensorSpec, count: str) -> bool:
    """Whether the number of sequences is a part of a size, or the size of several axes."""
    return spec.shape.count(count) > 1 or any(size != count and count in size_names(size) for size in spec.shape)


def _counts(roles: Roles) -> set[str]:
    """Names of the number of sequences: a mask may have one of its own."""
    specs = (roles.ids, *(spec for _, spec in roles.filled.values()))
    named = (spec.shape[axis] for spec in specs for axis in roles.sequence_axes(spec))
    return {size for size in named if isinstance(size, str)}


def _cuts(graph: ir.Graph, interface: Interface, roles: Roles) -> dict[ir.Value, SequenceCut]:
    """Cuts of inputs and outputs that have one part for each sequence."""
    specs = {spec.name: spec for spec in (*interface.inputs, *interface.outputs)}
    values = [value for value in (*graph.inputs, *graph.outputs) if value.name in specs]
    axes = {value: roles.sequence_axes(specs[value.name or ""]) for value in values}
    return {value: SequenceCut("cut", counting[0]) for value, counting in axes.items() if counting}


def _combining_node(graph: ir.Graph, cuts: Mapping[ir.Value, SequenceCut], counts: set[str]) -> ir.Node | None:
    """Find the first node that may combine sequences, or whose results are outputs that are not cut as ``cuts`` says.
    ``counts``: names of sizes that are the number of sequences."""
    cut_of = {value: cuts.get(value, SAME) for value in graph.inputs}
    names = {name for value in graph.inputs for size in known_shape(value) or () for name in size_names(size)}
    sizes = SizeNumbers(counts, names)
    for node in graph:
        cut: SequenceCut | None = SAME
        if any(cut_of.get(value, SAME) != SAME for value in read_values(node)):
            operands = [SAME if value is None else cut_of.get(value, SAME) for value in node.inputs]
            cut = cut_of_results(Use(node, operands, sizes))
        if cut is None or any(cuts.get(value, cut) != cut for value in node.outputs):
            return node
        cut_of.update(dict.fromkeys(node.outputs, cut))
    return None
