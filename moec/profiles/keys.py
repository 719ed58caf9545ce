"""Identity of measured layers: layers are identified by their weights, because names and numbers of nodes change.

A pass that changes weights, but not their meaning, leaves a note in the node's metadata, under ``MEASURED_KEY``:
``0123456789abcdef``, the key that the layer had. A pass that removes experts notes a new key, followed by those of the
layer before, each with the numbers that the remaining experts have there: ``89abcdef01234567 0123456789abcdef:0,2,5``.
Profiles from before and after can then be used. A pass after which no expert is the same leaves no numbers:
``89abcdef01234567 0123456789abcdef:`` replaces that layer.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError
from moec.common.names import node_name
from moec.ir.dialect import has_experts, is_moec
from moec.ir.weight_operands import stored_weights

MEASURED_KEY = "moec.measured"
"""Metadata of a node: the keys of the layer in profiles, where a pass has changed the weights since."""
_SAMPLED = 64
"""Rows of a matrix that enter the key."""
_DIGITS = 16
_MOST_NUMBER = 9
_ENTRY = re.compile(
    rf"(?P<key>[0-9a-f]{{{_DIGITS}}})(?::(?P<experts>|\d{{1,{_MOST_NUMBER}}}(?:,\d{{1,{_MOST_NUMBER}}})*))?"
)


def key_of(node: ir.Node) -> str:
    """Compute the key of a ``moec`` node with weights.

    It is the first 16 hexadecimal digits of a SHA-256 of the number of experts, the shapes of the weights and 64 rows
    of the first and of the last expert. The key stays when a pass changes the weights: see :func:`keep_key`. Raises
    UnsupportedError for weights that are not stored as :mod:`moec.ir.weights.stored` says.
    """
    note = node.metadata_props.get(MEASURED_KEY)
    if note is not None:
        return next(iter(_parsed(node, note)))
    digest = hashlib.sha256(node.op_type.encode() if is_moec(node, "Linear") else b"experts")
    for name, weight in stored_weights(node).items():
        digest.update(f"{name} {weight.experts} {weight.shape}".encode())
        for expert in sorted({0, weight.experts - 1}):
            digest.update(_sample(weight.run_of(expert).decoded(expert)))
    return digest.hexdigest()[:_DIGITS]


def numbered(keys: Iterable[str]) -> list[str]:
    """Tell layers with the same weights apart: the second layer with a key, in the order of the graph, is ``key#2``."""
    counts: Counter[str] = Counter()
    distinct = []
    for key in keys:
        counts[key] += 1
        distinct.append(key if counts[key] == 1 else f"{key}#{counts[key]}")
    return distinct


def key_of_linear(weight: np.ndarray) -> str:
    """Compute the key that a ``moec.Linear`` node with this weight has, a matrix as the graph stores it."""
    digest = hashlib.sha256(b"Linear")
    digest.update(f"weight 1 {weight.shape}".encode())
    digest.update(_sample(weight))
    return digest.hexdigest()[:_DIGITS]


def _sample(matrix: np.ndarray) -> bytes:
    rows = np.linspace(0, len(matrix) - 1, min(len(matrix), _SAMPLED)).astype(int)
    return np.ascontiguousarray(matrix[rows], np.float32).tobytes()


def keep_key(node: ir.Node) -> None:
    """Note a node's key in its metadata. A pass that uses a profile calls this before it changes weights."""
    node.metadata_props.setdefault(MEASURED_KEY, key_of(node))


def measured_as(node: ir.Node) -> Mapping[str, Sequence[int] | None]:
    """List the keys under which profiles may contain a node, the latest first, each with the numbers of the node's
    experts there: None where these are the node's own, empty where none of its experts was measured. Raises MoecError
    for malformed metadata."""
    note = node.metadata_props.get(MEASURED_KEY)
    return {key_of(node): None} if note is None else _parsed(node, note)


def keep_experts(node: ir.Node, kept: Sequence[int]) -> None:
    """Note which of the measured experts a node keeps. For later profiles it is a new layer. A node without a note
    stays unchanged."""
    if MEASURED_KEY not in node.metadata_props:
        return
    keys = measured_as(node)
    listed = ",".join(map(str, kept))
    entries = [hashlib.sha256(f"{next(iter(keys))}:{listed}".encode()).hexdigest()[:_DIGITS]]
    for key, experts in keys.items():
        numbers = kept if experts is None else [experts[expert] for expert in kept if experts]
        entries.append(f"{key}:{','.join(map(str, numbers))}")
    node.metadata_props[MEASURED_KEY] = " ".join(entries)


def keep_layer(node: ir.Node) -> None:
    """Note that a node replaces a measured layer by other experts. For later profiles it is a new layer. A node without
    a note stays unchanged."""
    if MEASURED_KEY not in node.metadata_props:
        return
    keys = measured_as(node)
    del node.metadata_props[MEASURED_KEY]
    node.metadata_props[MEASURED_KEY] = " ".join([key_of(node), *(f"{key}:" for key in keys)])


def _parsed(node: ir.Node, text: str) -> dict[str, Sequence[int] | None]:
    matches = [_ENTRY.fullmatch(entry) for entry in text.split(" ")]
    entries = {entry["key"]: entry["experts"] for entry in matches if entry is not None}
    counts = {experts.count(",") for experts in entries.values() if experts}
    if None in matches or next(iter(entries.values())) is not None or len(counts) > 1:
        raise MoecError(
            f"node {node_name(node)}: metadata {MEASURED_KEY} is {text[:80]!r}; expected keys of layers in profiles, "
            "such as '89abcdef01234567 0123456789abcdef:0,2,5'; remove it from the model"
        )
    return {
        key: None if experts is None else [int(number) for number in experts.split(",") if number]
        for key, experts in entries.items()
    }


def measurable(graph: ir.Graph) -> Iterator[ir.Node]:
    """Iterate over the nodes that are measured: experts and linears."""
    for node in graph:
        if has_experts(node) or is_moec(node, "Linear"):
            yield node
