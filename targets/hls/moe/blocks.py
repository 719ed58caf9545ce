"""The MoE blocks of a graph: where each begins and ends, and its numbers.

A block begins at the tokens that both its router and its experts take, and ends with the experts' sum, an expert that
every token goes to included. Where those tokens are a normalised residual stream that the sum is added to,
``x + MoE(norm(x))``, the block begins at x and ends with the addition. What is around it stays in the graph.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from moec.errors import UnsupportedError
from moec.ir.dialect import ExpertsSpec, RouteSpec, has_experts, inputs_of, is_moec, spec_of
from moec.ir.expert_ids import check_table, table_behind
from moec.ir.mapped_files import release_pages
from moec.ir.names import node_name
from moec.ir.weights.experts import ExpertWeights, Part
from moec.targets.hls.graph.dense_layer import dense_layer, optional, origin
from moec.targets.hls.graph.residuals import find_residual
from moec.targets.hls.moe.float_block import FloatBlock
from moec.targets.hls.moe.shared_expert import find_shared_expert, with_shared
from moec.targets.hls.moe.stored_steps import stored_steps

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class GraphBlock:
    """``tokens``: the value [..., d] that the block takes; ``output``: its result, of the same shape. ``computed_in``:
    the coarser type of those that its router and its experts round to."""

    name: str
    tokens: ir.Value
    output: ir.Value
    numbers: FloatBlock
    computed_in: np.dtype[Any] = dataclasses.field(default_factory=lambda: np.dtype(np.float32))

    def as_tokens(self, array: Array) -> Array:
        """What the graph holds as the block takes it: float32 [T, d]."""
        return array.reshape(-1, self.numbers.width).astype(np.float32)


def find_blocks(model: ir.Model) -> list[GraphBlock]:
    """In the order of the graph. Raises UnsupportedError, naming the node, for a block that cannot be cut out."""
    blocks = []
    for node in model.graph.all_nodes():
        if is_moec(node, "Dispatch"):
            raise UnsupportedError(
                f"{node_name(node)}: moec.Dispatch: its experts are a graph over dispatched rows; the templates "
                "compute moec.Experts and no experts of other forms"
            )
        if has_experts(node):
            try:
                blocks.append(_block(node))
            except UnsupportedError as error:
                raise UnsupportedError(f"{node_name(node)}: {error}") from error
    return blocks


def _block(node: ir.Node) -> GraphBlock:
    inputs, spec, output = inputs_of(node), spec_of(node, ExpertsSpec), node.outputs[0]
    route, table = (node, None) if node.op_type == "MoE" else _route_of(inputs)
    tokens, logits, correction = inputs["x"], inputs_of(route)["logits"], inputs_of(route)["correction_bias"]
    assert tokens is not None and logits is not None
    router = dense_layer(logits)
    computed_in = _coarser(router.input, tokens)
    if origin(router.input) is not origin(tokens):
        raise UnsupportedError(
            f"its router takes {router.input.name!r} and its experts {tokens.name!r}; an HLS block reads one tensor"
        )
    numbers = FloatBlock(
        name=node_name(node),
        routing=spec_of(route, RouteSpec),
        experts=spec,
        router=router.weights,
        router_bias=router.bias,
        correction_bias=optional(correction),
        **_experts(node, table),
    )
    shared = find_shared_expert(tokens, output, spec)
    if shared is not None:
        # The same tokens, in the shape of the sum.
        numbers, tokens, output = with_shared(numbers, shared), shared.up.input, shared.output
    residual = find_residual(tokens, output)
    if residual is not None and (numbers.stored is None or np.all(residual.scale == 1)):
        numbers = dataclasses.replace(numbers.scaled(residual.scale), norm=residual.norm)
        tokens, output = residual.tokens, residual.output
    return GraphBlock(numbers.name, tokens, output, numbers, computed_in)


def _coarser(*values: ir.Value) -> np.dtype[Any]:
    """Of their types; float32 where none is known."""
    known = [value.dtype.numpy() for value in values if value.dtype is not None]
    return max(known, key=lambda dtype: float(ml_dtypes.finfo(dtype).eps), default=np.dtype(np.float32))


def _route_of(inputs: dict[str, ir.Value | None]) -> tuple[ir.Node, tuple[int, ...] | None]:
    """The router, and the table (:mod:`moec.ir.expert_ids`) behind it, if there is one."""
    weights, experts, table = inputs["weights"], inputs["experts"], None
    ids = None if experts is None else origin(experts)
    if ids is not None and (found := table_behind(ids)) is not None:
        ids, table = origin(found[0]), found[1]
    route = None if weights is None else origin(weights).producer()
    if route is None or not is_moec(route, "Route") or ids is None or ids.producer() is not route:
        raise UnsupportedError("its routing is no moec.Route; an HLS block computes its own")
    if inputs_of(route)["tolerance"] is not None:
        raise UnsupportedError("its router has a tolerance; an HLS block has all experts in memory")
    return route, table


def _experts(node: ir.Node, table: tuple[int, ...] | None) -> dict[str, Any]:
    """The experts' numbers as :class:`FloatBlock` has them, by the router's ids; zeros for hidden units that an expert
    does not have, and for experts that contribute nothing."""
    weights = ExpertWeights(node)
    stored = stored_steps(weights)
    found: dict[str, Any] = {"gate": None, "gate_bias": None}
    for part in weights.parts:
        found[part] = _stacked(weights, part)
        found[f"{part}_bias"] = _or_zeros(weights.bias(part), found[part].shape[:2])
    if table is not None:
        check_table(table, weights.experts)
        ids = np.array(table)
        found = {name: None if one is None else _by_id(one, ids) for name, one in found.items()}
        if stored is not None:
            stored = dataclasses.replace(stored, of={part: _by_id(steps, ids) for part, steps in stored.of.items()})
    return {**found, "stored": stored}


def _by_id(numbers: Array, table: Array) -> Array:
    found = numbers[table]
    found[table < 0] = 0
    return found


def _stacked(weights: ExpertWeights, part: Part) -> Array:
    """A part of all experts, [E, out, in] in float32."""
    outputs, inputs = (weights.width, weights.hidden) if part == "down" else (weights.hidden, weights.inner)
    stacked = np.empty((weights.experts, outputs, inputs), np.float32)
    for expert in range(weights.experts):
        stacked[expert] = weights.decoded(part, expert).T
        release_pages()
    return stacked


def _or_zeros(bias: Array | None, shape: tuple[int, ...]) -> Array:
    return np.zeros(shape, np.float32) if bias is None else bias
