"""Order of MLPs by expert id, if every expert has an MLP of its own."""

from __future__ import annotations

import numpy as np

from moec.ir.interpreter import EvaluationError
from moec.passes.raising.block import Block
from moec.passes.raising.dataflow import Array
from moec.passes.raising.mlps import Mlp
from moec.passes.raising.router import RoutingProposal, as_mixture


def in_expert_order(block: Block, mlps: list[Mlp], routing: RoutingProposal) -> list[Mlp]:
    """Sort the MLPs by expert id: mark each MLP's result, and look for the mark in y.

    If the marks do not show a permutation, the order stays as it is, and the check has the last word.
    """
    if len(mlps) != block.E:
        return mlps
    T = max(block.E, 32)
    T = -(-T // block.row_step) * block.row_step
    logits = np.random.default_rng(4).normal(size=(T, block.E))
    chosen = as_mixture(*routing.run(block, logits), block.E) != 0
    try:
        reached = _tokens_reached(block, mlps, logits)
    except (EvaluationError, ValueError):  # a model that fixes its number of tokens may not be able to run this
        return mlps
    by_expert = {chosen[:, expert].tobytes(): expert for expert in range(block.E)}
    experts = [by_expert.get(reached[:, mlp].tobytes(), -1) for mlp in range(block.E)]
    if sorted(experts) != list(range(block.E)):
        return mlps
    return [mlps[experts.index(expert)] for expert in range(block.E)]


def _tokens_reached(block: Block, mlps: list[Mlp], logits: Array) -> Array:
    """Flags [T, MLPs]: whether a token's y depends on an MLP's result. Every MLP marks a column of its own."""
    results = [mlp.projections[-1].node.outputs[0] for mlp in mlps]
    x = np.ones((len(logits), block.d))
    blank = {v: np.zeros(shape) for v, shape in zip(results, block.shapes_on(x, logits, results), strict=True)}
    (y,) = block.evaluate(x, logits, [block.y], blank)
    reached = []
    for start in range(0, len(mlps), block.d):
        marked = dict(blank)
        for column, value in enumerate(results[start : start + block.d]):
            marked[value] = blank[value].copy()
            marked[value][..., column] = 1
        (y_marked,) = block.evaluate(x, logits, [block.y], marked)
        changed = (y_marked != y).reshape(len(logits), block.d)
        reached.append(changed[:, : len(results[start : start + block.d])])
    return np.concatenate(reached, axis=1)
