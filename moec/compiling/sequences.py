"""The size of a language model's inputs that counts its sequences, where each is computed as if it were alone."""

from __future__ import annotations

import onnx_ir as ir

from moec.common.errors import InputError
from moec.ir import dialect
from moec.ir.dialect import RouteSpec
from moec.runtime.interface import Interface
from moec.runtime.roles import roles_of


def sequences_of(graph: ir.Model, interface: Interface) -> str | None:
    """Find the named size of the sequences of token ids [sequences, length].

    None for a model without token ids, for a fixed number of sequences, and for routers that look at all tokens
    together (``expert_choice``, ``capacity``), where one sequence changes the results of another."""
    for node in graph.graph.all_nodes():
        if dialect.is_moec(node, "Route") or dialect.is_moec(node, "MoE"):
            spec = dialect.spec_of(node, RouteSpec)
            if spec.selection == "expert_choice" or spec.capacity:
                return None
    try:
        count = roles_of(interface).ids.shape[0]
    except InputError:
        return None
    return count if isinstance(count, str) else None
