"""Which layer a measurement is of: layers are known by their weights, for names and numbers of nodes change.

A pass that changes weights, but not what they are measured as, leaves a note in the metadata of the node, under
``MEASURED_KEY``: ``0123456789abcdef``, the key that the layer had. One that leaves experts out notes a new key, and
behind it those of the layer before, each with the numbers that the experts left have there:
``89abcdef01234567 0123456789abcdef:0,2,5``. A profile that was made before or after may then be used. One after which
no expert is what it was leaves no numbers: ``89abcdef01234567 0123456789abcdef:`` stands in the place of that layer.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from moec.errors import MoecError
from moec.ir.dialect import has_experts, is_moec
from moec.ir.names import node_name
from moec.ir.weights.stored import stored_weights

MEASURED_KEY = "moec.measured"
"""Key of a node's metadata: the keys of the layer in profiles, where a pass has changed the weights since."""
_SAMPLED = 64
"""Rows of a matrix whose numbers are looked at."""
_DIGITS = 16
_MOST_NUMBER = 9
_ENTRY = re.compile(
    rf"(?P<key>[0-9a-f]{{{_DIGITS}}})(?::(?P<experts>|\d{{1,{_MOST_NUMBER}}}(?:,\d{{1,{_MOST_NUMBER}}})*))?"
)


def key_of(node: ir.Node) -> str:
    """The key of a ``moec`` node with weights: the first 16 hexadecimal digits of a SHA-256 of the number of experts,
    the shapes of the weights and 64 rows of the first and of the last expert. What a node was measured as it stays,
    also when a pass changes its weights: see :func:`keep_key`.

    Raises UnsupportedError for weights that are not stored as :mod:`moec.ir.weights.stored` says.
    """
    known = node.metadata_props.get(MEASURED_KEY)
    if known is not None:
        return next(iter(_parsed(node, known)))
    digest = hashlib.sha256(node.op_type.encode() if is_moec(node, "Linear") else b"experts")
    for name, weight in stored_weights(node).items():
        digest.update(f"{name} {weight.experts} {weight.shape}".encode())
        for expert in sorted({0, weight.experts - 1}):
            matrix = weight.run_of(expert).decoded(expert)
            rows = np.linspace(0, len(matrix) - 1, min(len(matrix), _SAMPLED)).astype(int)
            digest.update(np.ascontiguousarray(matrix[rows], np.float32).tobytes())
    return digest.hexdigest()[:_DIGITS]


def keep_key(node: ir.Node) -> None:
    """Note on a node what it is measured as. A pass that uses a profile does so before it changes weights."""
    node.metadata_props.setdefault(MEASURED_KEY, key_of(node))


def measured_as(node: ir.Node) -> Mapping[str, Sequence[int] | None]:
    """The keys under which profiles may know a node, the latest first, each with the numbers that the node's experts
    have there: None where these are those of the node, none where the layer is known, but no expert of it is left.
    Raises MoecError for metadata that says no such thing."""
    known = node.metadata_props.get(MEASURED_KEY)
    return {key_of(node): None} if known is None else _parsed(node, known)


def keep_experts(node: ir.Node, kept: Sequence[int]) -> None:
    """Note on a node which experts of those that it was measured with it has from now on. It is a layer of its own to
    profiles that are made afterwards; nothing happens to a node without a note."""
    if MEASURED_KEY not in node.metadata_props:
        return
    known = measured_as(node)
    listed = ",".join(map(str, kept))
    entries = [hashlib.sha256(f"{next(iter(known))}:{listed}".encode()).hexdigest()[:_DIGITS]]
    for key, experts in known.items():
        numbers = kept if experts is None else [experts[expert] for expert in kept if experts]
        entries.append(f"{key}:{','.join(map(str, numbers))}")
    node.metadata_props[MEASURED_KEY] = " ".join(entries)


def keep_layer(node: ir.Node) -> None:
    """Note on a node that its experts are none of those that it was measured with, and that it stands in the place of
    their layer. It is a layer of its own to profiles that are made afterwards; nothing happens to a node without a
    note."""
    if MEASURED_KEY not in node.metadata_props:
        return
    known = measured_as(node)
    del node.metadata_props[MEASURED_KEY]
    node.metadata_props[MEASURED_KEY] = " ".join([key_of(node), *(f"{key}:" for key in known)])


def _parsed(node: ir.Node, text: str) -> dict[str, Sequence[int] | None]:
    found = [_ENTRY.fullmatch(entry) for entry in text.split(" ")]
    entries = {entry["key"]: entry["experts"] for entry in found if entry is not None}
    counts = {experts.count(",") for experts in entries.values() if experts}
    if None in found or next(iter(entries.values())) is not None or len(counts) > 1:
        raise MoecError(
            f"node {node_name(node)}: metadata {MEASURED_KEY} is {text[:80]!r}; expected keys of layers in profiles, "
            "such as '89abcdef01234567 0123456789abcdef:0,2,5'; remove it from the model"
        )
    return {
        key: None if experts is None else [int(number) for number in experts.split(",") if number]
        for key, experts in entries.items()
    }


def measurable(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes that are measured: experts and linears."""
    for node in graph:
        if has_experts(node) or is_moec(node, "Linear"):
            yield node
