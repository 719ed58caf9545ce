"""Decisions of a trial that reach y: a side that an expert takes for a token that does not select it shows nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from moec.ir.graphs import is_op
from moec.ir.interpreter import Watcher
from moec.ir.liveness import Liveness
from moec.ir.sides import Given, Live
from moec.ir.watch import Watch
from moec.passes.raising.block import Block
from moec.passes.raising.trials import Trial


def reaching(block: Block, trial: Trial, watch: Watch, seen: Watch) -> Watch:
    """A copy of ``watch`` after a trial on a block that is laid out for it. Decisions about x count only if they reach
    y; all of the router's count, because these hide others. ``seen`` is a fork of it with the evidence of all
    decisions."""
    news = watch.news(seen)
    nodes = [node for node in news if not block.from_x.isdisjoint(_deciding(node))]
    if not nodes:
        return seen
    fork = watch.fork()
    for start in block.starts_for(len(trial.x)):
        for feeds, rows in block.runs(trial.x, trial.logits, start):
            evaluator = block.evaluator(feeds, [block.y])
            liveness = Liveness(evaluator, nodes, block.from_x, block.selected, block.without_zeros)
            (y,) = evaluator.run(feeds, liveness)
            counted = np.arange(y.size) < rows * block.d
            live = liveness.of_decisions({block.y: counted.reshape(y.shape)})
            evaluator.run(feeds, _telling(fork, dict.fromkeys(news) | live))
    return fork


def _deciding(node: ir.Node) -> Sequence[ir.Value | None]:
    """The operands by which a node decides: for a selection between two values the condition."""
    return node.inputs[:1] if is_op(node, "Where") else node.inputs


def _telling(watch: Watch, live: Mapping[ir.Node, Live]) -> Watcher:
    def tell(node: ir.Node, inputs: Given, outputs: Given) -> None:
        if node in live:
            watch(node, inputs, outputs, live[node])

    return tell
