"""Which layer a measurement is of: layers are known by their weights, for names and numbers of nodes change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from moec.ir.dialect import is_moec
from moec.ir.weights.stored import stored_weights

MEASURED_KEY = "moec.measured"
"""Key of a node's metadata: the key of the layer in the profile, where a pass has changed the weights since."""
_SAMPLED = 64
"""Rows of a matrix whose numbers are looked at."""
_DIGITS = 16


def key_of(node: ir.Node) -> str:
    """The key of a ``moec`` node with weights: the first 16 hexadecimal digits of a SHA-256 of the number of experts,
    the shapes of the weights and 64 rows of the first and of the last expert. What a node was measured as it stays,
    also when a pass changes its weights: see :func:`keep_key`.

    Raises UnsupportedError for weights that are not stored as :mod:`moec.ir.weights.stored` says.
    """
    known = node.metadata_props.get(MEASURED_KEY)
    if known is not None:
        return known
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
    node.metadata_props[MEASURED_KEY] = key_of(node)


def measurable(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes that are measured: experts and linears."""
    for node in graph:
        if is_moec(node, "MoE") or is_moec(node, "Experts") or is_moec(node, "Linear"):
            yield node
