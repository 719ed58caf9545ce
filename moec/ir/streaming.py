"""Streaming of experts: whether a model's weights are larger than the memory that they may take. The pass
``stream-experts`` writes this into the model's metadata, and targets that can stream read it."""

from __future__ import annotations

import json
from collections.abc import Iterable

import onnx_ir as ir

from moec.common.errors import MoecError

STREAMED_KEY = "moec.streamed"
SHARES_KEY = "moec.shares"
"""Key of a node's metadata: the share of the layer's tokens that each of its experts had, as a list in JSON."""


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
