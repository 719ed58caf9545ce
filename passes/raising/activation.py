"""Candidates for the function of experts between their projections, with the constants that the graph contains.

However an activation is written (GELU as a chain around Erf, SiLU as Sigmoid and Mul), it is a function. Candidates are
therefore not recognised but tried.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

from moec.ir.dialect import Activation, ExpertsSpec, choices
from moec.passes.graph.edits import is_op
from moec.passes.raising.block import Block

_LIMITING = ("Clip", "Min", "Max")
_ADDING = ("Add", "Sub")
_SCALING = ("Mul", "Div")


def activations(block: Block, spec: ExpertsSpec) -> Iterator[ExpertsSpec]:
    """``spec`` with every activation, alpha, limit, offset and place of the routing weight that the graph allows."""
    alphas = {1.0, *_scalars(block, _SCALING), *_alphas_of_swish(block)}
    limits = {0.0, *_scalars(block, _LIMITING)} if spec.gated else {0.0}
    output_limits = {0.0, *_scalars(block, _LIMITING)}
    offsets = {0.0, *_scalars(block, _ADDING)} if spec.gated else {0.0}
    names: tuple[Activation, ...] = choices(ExpertsSpec, "activation")  # type: ignore[assignment]
    for weight_on_input, name in itertools.product((False, True), names):
        own_alphas = sorted(alphas) if name == "silu" else [1.0]
        for alpha, limit, output_limit, offset in itertools.product(
            own_alphas, sorted(limits, reverse=True), sorted(output_limits, reverse=True), sorted(offsets)
        ):
            yield dataclasses.replace(
                spec,
                activation=name,
                alpha=alpha,
                limit=limit,
                output_limit=output_limit,
                up_offset=offset,
                weight_on_input=weight_on_input,
            )


def _scalars(block: Block, operators: tuple[str, ...]) -> set[float]:
    """Positive scalar constants of the experts' operators of these types."""
    nodes = (node for node in block.expert_nodes() if node.op_type in operators)
    numbers = (block.dataflow.scalar(value) for node in nodes for value in node.inputs)
    return {number for number in numbers if number is not None and number > 0}


def _alphas_of_swish(block: Block) -> set[float]:
    nodes = (node for node in block.expert_nodes() if is_op(node, "Swish"))
    return {node.attributes.get_float("alpha", 1.0) for node in nodes}
