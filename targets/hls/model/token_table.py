"""The embedding of a decoder whose tokens are rows of a table selected by id, and nothing else."""

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
"""The length of sequences to run if the graph allows any."""


@dataclasses.dataclass(frozen=True)
class TokenTable:
    """The table of an embedding: ids [B, T], the graph's input ``tokens``, select ``rows`` [V, d], in float32, of the
    stream ``output``."""

    tokens: ir.Value
    output: ir.Value
    rows: Array


def find_token_table(model: ir.Model, stream: ir.Value) -> TokenTable | None:
    """The table of the embedding; None where tokens depend on more than their ids, such as positions, or are inputs of
    the graph. Nodes may change rows in any way, since the rows are read from the stream."""
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
    rows, others = (_rows(model, ids, stream, some_ids) for some_ids in (np.arange(count), order))
    # A row must be the same at other positions, and after other tokens.
    if rows is None or others is None or not np.array_equal(rows[order], others):
        return None
    return TokenTable(ids, stream, rows)


def _rows(model: ir.Model, ids: ir.Value, stream: ir.Value, tokens: Array) -> Array | None:
    """The rows of these ids; None where the graph needs more than ids to compute them."""
    assert ids.shape is not None and ids.dtype is not None
    batch, length = (size if isinstance(size, int) else None for size in ids.shape)
    length = length or min(_SEQUENCE, len(tokens))
    per_call = length * (batch or -(-len(tokens) // length))
    padded = np.pad(tokens, (0, -len(tokens) % per_call)).astype(ids.dtype.numpy())
    parts = []
    for first in range(0, len(padded), per_call):
        fed = padded[first : first + per_call].reshape(-1, length)
        try:
            (part,) = evaluate(model, {**random_inputs(model, len(fed), length), ids: fed}, [stream])
        except (ValueError, EvaluationError):
            return None
        parts.append(part.reshape(per_call, -1))
    return np.concatenate(parts)[: len(tokens)].astype(np.float32)
