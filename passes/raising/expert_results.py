"""Values that hold the results of single experts, identified by the effect of a change of each on y.

y is the sum of its experts' results, each times its weight. A value holds the result of an expert, whatever computed
it, if some step changes it by rows, and y by the same rows times the weights of this expert.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from moec.ir.interpreter import EvaluationError, Evaluator
from moec.passes.raising.block import Block
from moec.passes.raising.dataflow import Array
from moec.passes.raising.mixing import Mixing

TOLERANCE = 1e-7
MOST_VALUES = 4096
_RESHAPING = ("Identity", "Reshape", "Squeeze", "Unsqueeze")


@dataclasses.dataclass(frozen=True)
class _BlockRun:
    """Values of a block for some tokens with a known mixture [T,E]."""

    mixture: Array
    y: Array
    values: dict[ir.Value, Array]


def expert_results(block: Block, mixing: Mixing) -> dict[int, ir.Value]:
    """The value that holds the result of each expert, for experts with such a value; the one nearest to y before nodes
    that only shape it. It has a row of width d for every token, or for those that selected the expert."""
    runs = _runs(block, mixing)

    def place(value: ir.Value) -> float:
        node = value.producer()
        return -1 if node is None else block.dataflow.order[node]

    results: dict[int, ir.Value] = {}
    pending, seen = {block.y}, {block.y}
    while pending and len(seen) < MOST_VALUES and len(results) < block.E:
        value = max(pending, key=place)
        pending.remove(value)
        expert = None if value is block.y else _expert_of(block, value, runs)
        if expert is not None:
            results.setdefault(expert, _unshaped(value))
            continue
        node = value.producer()
        assert node is not None
        inner = [v for v in node.inputs if v in block.from_x and v not in seen and v not in (block.x, block.start)]
        if node.op_type != "Shape":
            seen.update(v for v in inner if v is not None)
            pending.update(v for v in inner if v is not None and v.producer() is not None)
    return results


def _runs(block: Block, mixing: Mixing) -> list[_BlockRun]:
    random = np.random.default_rng(6)
    outputs = [
        value
        for value in dict.fromkeys(v for node in block.nodes for v in (*node.inputs, *node.outputs))
        if value is not None and value.name and not block.dataflow.constant(value)
    ]
    runs, first = [], 0
    for logits in mixing.logits:
        mixture = mixing.mixture[first : first + len(logits)]
        first += len(logits)
        arrays = block.evaluate(random.normal(size=(len(logits), block.d)), logits, outputs)
        values = dict(zip(outputs, arrays, strict=True))
        runs.append(_BlockRun(mixture, values[block.y].reshape(-1, block.d), values))
    return runs


def _expert_of(block: Block, value: ir.Value, runs: list[_BlockRun]) -> int | None:
    """The expert whose result a value holds; None if it holds none."""
    behind = block.dataflow.dependents([value], block.nodes) - {value}
    nodes = [node for node in block.nodes if node.outputs[0] in behind and node.op_type != "Shape"]
    needed = dict.fromkeys(v for node in nodes for v in node.inputs if v is not None and v in runs[0].values)
    feeds = [v for v in needed if v not in behind]
    try:
        evaluator = Evaluator(nodes, feeds, [block.y], {"": 24}, dtype=np.float64)
        fitting: set[int] | None = None
        for number, run in enumerate(runs):
            array = run.values[value]
            if array.dtype.kind != "f" or array.size % block.d or array.shape[-1:] != (block.d,):
                return None
            if not array.size:
                continue
            step = np.random.default_rng(number).normal(size=array.shape)
            (y,) = evaluator.run({**{v: run.values[v] for v in feeds}, value: array + step})
            experts = _fitting(y.reshape(run.y.shape) - run.y, step.reshape(-1, block.d), run.mixture)
            fitting = experts if fitting is None else fitting & experts
            if not fitting:
                return None
    except (EvaluationError, ValueError):
        return None
    return fitting.pop() if fitting and len(fitting) == 1 else None


def _fitting(moved: Array, step: Array, mixture: Array) -> set[int]:
    """The experts for which ``moved`` [T,d] are rows of ``step`` times their weights in the mixture [T,E]: one row for
    every token, or in any order one for every token that has a weight."""
    if not np.isfinite(moved).all():
        return set()
    near = TOLERANCE * np.abs(mixture).max()
    if len(step) == len(moved):
        share = (moved * step).sum(axis=1) / (step * step).sum(axis=1)
        if np.abs(moved - share[:, None] * step).max() <= TOLERANCE * np.abs(moved).max(initial=1e-300):
            return set(np.flatnonzero((np.abs(mixture - share[:, None]) <= near).all(axis=0)).tolist())
    experts = set()
    for expert in np.flatnonzero((mixture != 0).sum(axis=0) == len(step)).tolist():
        tokens = mixture[:, expert] != 0
        if moved[~tokens].any():
            continue
        rows = moved[tokens] / mixture[tokens, expert, None]
        apart = np.abs(rows[rows[:, 0].argsort()] - step[step[:, 0].argsort()])
        if apart.max() <= TOLERANCE * np.abs(step).max() * 1e3:
            experts.add(expert)
    return experts


def _unshaped(value: ir.Value) -> ir.Value:
    while (node := value.producer()) is not None and node.op_type in _RESHAPING and node.inputs[0] is not None:
        before = node.inputs[0]
        if before.shape is None or value.shape is None or before.shape[-1] != value.shape[-1]:
            break
        value = before
    return value
