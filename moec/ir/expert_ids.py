"""The source of a node's expert ids: a router, or a router followed by a table.

Experts with equal weights may be stored once, and experts that contribute nothing need not be stored. Then a constant
table stands between ``moec.Route`` and ``moec.Experts``: ``Gather <axis = 0> (table, experts)``, int32 [R + 1] for a
router of R experts. Entry r is the node's id of the router's expert r, or -1 if that one contributes nothing. The last
entry is -1, so that a pair that was not dispatched keeps its id of -1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.ir import dialect
from moec.ir.rule import known_size
from moec.ir.weights.stored import constant

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Routing:
    """The ``moec.Route`` or ``moec.MoE`` node that selects experts, and the table that maps its R ids; None without a
    table."""

    route: ir.Node
    table: tuple[int, ...] | None = None


def routing_of(node: ir.Node) -> Routing:
    """Find the router of a ``moec.MoE`` node, or of a ``moec.Experts`` node that takes weights and ids from one
    ``moec.Route``.

    Raises UnsupportedError, which says why, for any other node, and for a table with an id that the node does not have.
    """
    if dialect.is_moec(node, "MoE"):
        return Routing(node)
    inputs = dialect.inputs_of(node)
    weights, ids, table = inputs["weights"], selected_ids(node), None
    if ids is not None and (lookup := table_behind(ids)) is not None:
        ids, table = lookup
    route = ids.producer() if ids is not None else None
    if route is None or not dialect.is_moec(route, "Route") or ids is not route.outputs[1]:
        raise UnsupportedError("its experts input does not come from a moec.Route")
    if weights is not route.outputs[0] and not _is_received(weights):
        raise UnsupportedError("the weights are changed between moec.Route and moec.Experts")
    stored = known_size(inputs["up"], 0)
    if table is not None and stored is not None:
        check_table(table, stored + dialect.spec_of(node, dialect.ExpertsSpec).identity_experts)
    return Routing(route, table)


def selected_ids(node: ir.Node) -> ir.Value | None:
    """The ids [T,k] that select the experts of a ``moec.Experts`` node: its own input, or what this rank sends where
    rows come from several ranks."""
    ids = dialect.inputs_of(node)["experts"]
    source = None if ids is None else ids.producer()
    is_received = source is not None and dialect.is_moec(source, "ReceiveRows")
    return dialect.inputs_of(source)["experts"] if is_received else ids


def _is_received(value: ir.Value | None) -> bool:
    """Whether a value comes with rows from other ranks."""
    source = None if value is None else value.producer()
    return source is not None and dialect.is_moec(source, "ReceiveRows")


def check_table(table: tuple[int, ...], count: int) -> None:
    """Raises UnsupportedError for an id that is none of ``count`` experts."""
    if max(table, default=-1) >= count:
        raise UnsupportedError(f"a table after moec.Route has the id {max(table)}; expected ids below {count}")


def other_user(experts: ir.Node, route: ir.Node) -> str | None:
    """Describe a user of the routing of an Experts node, other than that node; None without one or for ``moec.MoE``."""
    if experts is route:
        return None
    ids = dialect.inputs_of(experts)["experts"]
    assert ids is not None
    for value in (*route.outputs, ids):
        if value.is_graph_output():
            return f"{value.name!r} is an output of the model"
        others = [user for user, _ in value.uses() if user is not experts and ids not in user.outputs]
        if others:
            return f"{others[0].op_type} uses {value.name!r} too"
    return None


def table_node(ids: ir.Value, table: ir.Value) -> ir.Node:
    """The node that maps ids by a table."""
    node = ir.node("Gather", [table, ids], {"axis": 0})
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.INT32), ids.shape
    return node


def mapped(table: Sequence[int], ids: Array) -> Array:
    """Map ids [T,k] by a table without its last entry; an empty table changes nothing."""
    return np.append(table, -1).astype(ids.dtype)[ids] if table else ids


def table_behind(mapped: ir.Value) -> tuple[ir.Value, tuple[int, ...]] | None:
    """The ids that a table maps, and its entries except the last; None if ``mapped`` is not the result of a table."""
    node = mapped.producer()
    if node is None or node.domain or node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
        return None
    tensor, ids = constant(node.inputs[0]), node.inputs[1]
    if tensor is None or ids is None or tensor.dtype != ir.DataType.INT32 or len(tensor.shape) != 1:
        return None
    entries = np.asarray(tensor.numpy())
    if not len(entries) or entries[-1] != -1 or entries.min() < -1:
        return None
    return ids, tuple(int(entry) for entry in entries[:-1])
