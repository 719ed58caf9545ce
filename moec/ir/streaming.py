"""Streaming of weights: whether a model's are larger than the memory that they may take. The pass ``stream-experts``
writes this into the model's metadata, and targets that can stream read it."""

from __future__ import annotations

import json
from collections.abc import Iterable

import onnx_ir as ir

from moec.common.errors import MoecError
from moec.ir.graphs import is_op

STREAMED_KEY = "moec.streamed"
SHARES_KEY = "moec.shares"
"""Key of a node's metadata: the share of the layer's tokens that each of its experts had, as a list in JSON."""

LEAST_TABLE = 4 << 20
"""Bytes from which a table stays on disk where a program only looks up rows of it."""


def tables_read_whole(graph: ir.Graph) -> dict[ir.Value, ir.Node]:
    """The tables that are large enough to stay on disk, of which some nodes look up rows and others read all; with one
    of these others each."""
    tables: dict[ir.Value, ir.Node] = {}
    for value in graph.initializers.values():
        nodes = [(use.node, looks_up_rows(use.node) and use.idx == 0) for use in value.uses()]
        if value.const_value is not None and value.const_value.nbytes >= LEAST_TABLE:
            others = [node for node, looks_up in nodes if not looks_up]
            if others and len(others) < len(nodes):
                tables[value] = others[0]
    return tables


def looks_up_rows(node: ir.Node) -> bool:
    """Whether a node reads rows of its first input, by numbers that are known only at run time."""
    if not is_op(node, "Gather") or node.attributes.get_int("axis", 0) != 0:
        return False
    ids = node.inputs[1]
    return ids is not None and ids.const_value is None


def set_streamed(model: ir.Model) -> bool:
    """Write the metadata of a model; return whether it changed."""
    changed = not is_streamed(model)
    model.metadata_props[STREAMED_KEY] = "experts"
    return changed


def is_streamed(model: ir.Model) -> bool:
    """Whether the model's metadata says that its experts are streamed."""
    return STREAMED_KEY in model.metadata_props


def set_shares(node: ir.Node, shares: Iterable[float]) -> None:
    """Record on a node how often its experts were selected."""
    node.metadata_props[SHARES_KEY] = json.dumps([round(float(share), 6) for share in shares])


def shares_of(node: ir.Node, experts: int) -> list[float]:
    """Shares of tokens of the node's experts; empty without such metadata. Raises MoecError if it has another form."""
    text = node.metadata_props.get(SHARES_KEY, "[]")
    try:
        shares = [float(share) for share in json.loads(text)]
    except (ValueError, OverflowError, RecursionError, TypeError):
        shares = [-1.0]
    if len(shares) not in (0, experts) or not all(0 <= share <= 1 for share in shares):
        raise MoecError(
            f"metadata {SHARES_KEY!r} is {text[:80]!r}; expected a share of each of {experts} experts; remove it from "
            "the model"
        )
    return shares
