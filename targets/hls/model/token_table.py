"""The embedding of a decoder: rows of a table that ids of tokens choose, and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir.interpreter import EvaluationError
from moec.targets.hls.graph.affine import random_inputs
from moec.targets.hls.graph.between import nodes_between
from moec.targets.hls.graph.calibrate import evaluate
from moec.targets.hls.graph.dense_layer import origin

Array = np.ndarray[Any, Any]

_SEQUENCE = 256
"""Ids of a sequence that the graph is asked for, where it takes any number."""


@dataclasses.dataclass(frozen=True)
class TokenTable:
    """Ids [B, T], the input ``tokens`` of the graph, become ``rows`` [V, d], in float32, of the stream ``output``."""

    tokens: ir.Value
    output: ir.Value
    rows: Array


def find_token_table(model: ir.Model, stream: ir.Value) -> TokenTable | None:
    """None where tokens are something else than rows of a table by id: where they are given as they are, or where
    positions are added. Nodes in between may do anything else to rows, for what they make is looked at."""
    inputs = list(model.graph.inputs)
    gathers = nodes_between(inputs[0], stream, lambda node: node.op_type == "Gather" and node.domain == "")
    if len(gathers) != 1:
        return None
    table, ids = gathers[0].inputs
    assert table is not None and ids is not None
    axis, ids = gathers[0].attributes.get("axis"), origin(ids)
    count = None if table.shape is None or (axis is not None and axis.as_int()) else table.shape[0]
    if ids not in inputs or ids.shape is None or len(ids.shape) != 2 or not isinstance(count, int):
        return None
    order = np.random.default_rng(4).permutation(count)
    rows, others = (_rows(model, ids, stream, given) for given in (np.arange(count), order))
    # At other positions, and behind other tokens, a row must be the same.
    if rows is None or others is None or not np.array_equal(rows[order], others):
        return None
    return TokenTable(ids, stream, rows)


def _rows(model: ir.Model, ids: ir.Value, stream: ir.Value, wanted: Array) -> Array | None:
    """Of these ids, one after the other; None where the graph takes more than ids to make them."""
    assert ids.shape is not None and ids.dtype is not None
    batch, length = (size if isinstance(size, int) else None for size in ids.shape)
    length = length or min(_SEQUENCE, len(wanted))
    per_call = length * (batch or -(-len(wanted) // length))
    padded = np.pad(wanted, (0, -len(wanted) % per_call)).astype(ids.dtype.numpy())
    found = []
    for first in range(0, len(padded), per_call):
        given = padded[first : first + per_call].reshape(-1, length)
        try:
            (part,) = evaluate(model, {**random_inputs(model, len(given), length), ids: given}, [stream])
        except (ValueError, EvaluationError):
            return None
        found.append(part.reshape(per_call, -1))
    return np.concatenate(found)[: len(wanted)].astype(np.float32)
