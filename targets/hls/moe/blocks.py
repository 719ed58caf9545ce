"""The MoE blocks of a graph: the values where each begins and ends, and its numbers.

A block begins at the tokens that both its router and its experts take, and ends with the experts' sum, shared experts
included. In ``x + MoE(norm(x))``, where the tokens are a normalised residual stream and the sum is added to it, the
block begins at x and ends with the addition. All other nodes stay in the graph.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.mapped_files import release_pages
from moec.common.names import node_name
from moec.ir.dialect import ExpertsSpec, RouteSpec, has_experts, inputs_of, is_moec, spec_of
from moec.ir.expert_ids import check_table, table_behind
from moec.ir.expert_weights import ExpertWeights, Part
from moec.targets.hls.graph.dense_layer import dense_layer, optional, origin
from moec.targets.hls.graph.residuals import find_residual
from moec.targets.hls.moe.float_block import FloatBlock
from moec.targets.hls.moe.shared_expert import find_shared_expert, with_shared
from moec.targets.hls.moe.stored_steps import stored_steps

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class GraphBlock:
    """A MoE block between two values of a graph: ``tokens`` [..., d] and ``output`` of the same shape. ``computed_in``:
    the coarser of the types that its router and its experts compute in."""

    name: str
    tokens: ir.Value
    output: ir.Value
    numbers: FloatBlock
    computed_in: np.dtype[Any] = dataclasses.field(default_factory=lambda: np.dtype(np.float32))

    def as_tokens(self, array: Array) -> Array:
        """An array of the graph as float32 rows [T, d], the form that the block takes."""
        return array.reshape(-1, self.numbers.width).astype(np.float32)


def find_blocks(model: ir.Model) -> list[GraphBlock]:
    """All MoE blocks in the order of the graph. Raises UnsupportedError, naming the node, for a block that cannot be
    cut out."""
    blocks = []
    for node in model.graph.all_nodes():
        if is_moec(node, "Dispatch"):
            raise UnsupportedError(
                f"{node_name(node)}: moec.Dispatch: its experts are a graph over dispatched rows; expected moec.Experts"
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
            f"its router takes {router.input.name!r} and its experts {tokens.name!r}; expected one tensor for both"
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
        # The shared expert takes the same tokens, and its input has the shape of the sum.
        numbers, tokens, output = with_shared(numbers, shared), shared.up.input, shared.output
    residual = find_residual(tokens, output)
    if residual is not None and (numbers.stored is None or np.all(residual.scale == 1)):
        numbers = dataclasses.replace(numbers.scaled(residual.scale), norm=residual.norm)
        tokens, output = residual.tokens, residual.output
    return GraphBlock(numbers.name, tokens, output, numbers, computed_in)


def _coarser(*values: ir.Value) -> np.dtype[Any]:
    """The coarsest type of these values; float32 where none is known."""
    dtypes = [value.dtype.numpy() for value in values if value.dtype is not None]
    return max(dtypes, key=lambda dtype: float(ml_dtypes.finfo(dtype).eps), default=np.dtype(np.float32))


def _route_of(inputs: dict[str, ir.Value | None]) -> tuple[ir.Node, tuple[int, ...] | None]:
    """The Route node, and the table of ids (:mod:`moec.ir.expert_ids`) after it, or None."""
    weights, experts, table = inputs["weights"], inputs["experts"], None
    ids = None if experts is None else origin(experts)
    if ids is not None and (behind := table_behind(ids)) is not None:
        ids, table = origin(behind[0]), behind[1]
    route = None if weights is None else origin(weights).producer()
    if route is None or not is_moec(route, "Route") or ids is None or ids.producer() is not route:
        raise UnsupportedError("its routing is no moec.Route; an HLS block computes its own")
    if inputs_of(route)["tolerance"] is not None:
        raise UnsupportedError("its router has a tolerance; expected none, because all experts are in memory")
    return route, table


def _experts(node: ir.Node, table: tuple[int, ...] | None) -> dict[str, Any]:
    """The experts' numbers as fields of :class:`FloatBlock`, in the order of the router's ids. Missing hidden units,
    and experts that contribute nothing, are zeros."""
    weights = ExpertWeights(node)
    stored = stored_steps(weights)
    numbers: dict[str, Any] = {"gate": None, "gate_bias": None}
    for part in weights.parts:
        numbers[part] = _stacked(weights, part)
        numbers[f"{part}_bias"] = _or_zeros(weights.bias(part), numbers[part].shape[:2])
    if table is not None:
        check_table(table, weights.experts)
        ids = np.array(table)
        numbers = {name: None if array is None else _by_id(array, ids) for name, array in numbers.items()}
        if stored is not None:
            stored = dataclasses.replace(stored, of={part: _by_id(steps, ids) for part, steps in stored.of.items()})
    return {**numbers, "stored": stored}


def _by_id(numbers: Array, table: Array) -> Array:
    selected = numbers[table]
    selected[table < 0] = 0
    return selected


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
