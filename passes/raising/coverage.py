"""Search for inputs that reach the sides of a block's decisions that trials have not taken.

A clamp that no trial reaches, a switch on the number of tokens, a floor under a sum: a proposal that ignores them
agrees on all trials. Therefore every node that decides is watched (:mod:`moec.ir.watch`). For each side that was not
taken and that no interval excludes, inputs are searched for, on which the proposal has to agree, too. A side that
stays unseen leaves the block as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Set

import numpy as np
import onnx_ir as ir

from moec.ir.facts import facts_of
from moec.ir.interpreter import EvaluationError
from moec.ir.sides import Never
from moec.ir.watch import Unseen, Watch
from moec.passes.graph.edits import is_op
from moec.passes.raising.block import Block
from moec.passes.raising.dataflow import Array
from moec.passes.raising.router import RoutingProposal
from moec.passes.raising.trials import Trial, combined_trials, far_trials

SHIFTS = (1.0, 10.0, 0.01)
IDLE = 1e-9
"""Allowed difference of y, relative to y, if another result that it is independent of was computed."""


def watch_block(block: Block, used: Set[ir.Value]) -> Watch:
    """A watch over all nodes of a block. The numbers of ``used`` constants are not looked at, because they may differ
    in a block of equal structure."""
    return Watch(block.nodes, facts_of(block.nodes, _BlockConstants(block, used)))


class _UnseenRounding(Never):
    """A rounding to fewer bits: trials are computed in float64, where it and its overflow do not show."""

    def __str__(self) -> str:
        return "it rounds to a type that holds less than x and y do"


def roundings(block: Block) -> list[Unseen]:
    """Casts inside a block to floats with less precision than x and y. They change results and the selection of
    experts. A rounding to the type of x or y adds nothing to that at the block's borders."""
    types = {value.dtype for value in (block.x, block.y) if value.dtype is not None}
    bits = min((dtype.bitwidth for dtype in types), default=0)

    def rounds(node: ir.Node) -> bool:
        dtype = node.outputs[0].dtype if node.op_type in ("Cast", "CastLike") else None
        return dtype is not None and dtype.is_floating_point() and dtype.bitwidth <= bits and dtype not in types

    return [Unseen(node, _UnseenRounding()) for node in block.nodes if rounds(node)]


@dataclasses.dataclass(frozen=True)
class _BlockConstants:
    """The constants of a block, except the ``used`` ones."""

    block: Block
    used: Set[ir.Value]

    def has(self, value: ir.Value) -> bool:
        return value not in self.used and self.block.dataflow.constant(value)

    def array(self, value: ir.Value, most: int) -> Array | None:
        dataflow = self.block.dataflow
        if not self.has(value) or np.prod(dataflow.shape(value), dtype=np.int64) > most:
            return None
        return dataflow.array(value)


def idle_nodes(block: Block, watch: Watch, trial: Trial) -> list[ir.Node]:
    """Extremes with unseen sides whose results never affect y, such as the maximum that a softmax subtracts. Empty if
    the trial cannot be run as it is."""
    if block.rows_are_fixed or len(trial.x) % max(block.row_step, 1):
        return []
    nodes = dict.fromkeys(side.node for side in watch.unseen() if is_op(side.node, "ReduceMax", "ReduceMin"))
    try:
        return [node for node in nodes if _is_idle(block, node.outputs[0], trial)]
    except EvaluationError:
        return []


def _is_idle(block: Block, result: ir.Value, trial: Trial) -> bool:
    y, array = block.evaluate(trial.x, trial.logits, [block.y, result])
    if array.dtype.kind != "f":
        return False
    for seed, size in enumerate(SHIFTS):
        shift = np.random.default_rng(seed).normal(size=array.shape) * size
        (moved,) = block.evaluate(trial.x, trial.logits, [block.y], {result: array + shift})
        if not np.allclose(moved, y, rtol=IDLE, atol=IDLE * np.abs(y).max(initial=0)):
            return False
    return True


def reaching_trials(block: Block, routing: RoutingProposal, watch: Watch) -> Iterator[Trial]:
    """Trials that take sides which ``watch`` has not seen, until all are seen or nothing is left to try. If there are
    any, combinations of them with other trials follow: a side that is rarely taken may have no effect on its own (that
    of an expert with weight 0). The caller runs each trial under the watch before it takes the next."""
    if not watch.sides:
        return
    reached: list[Trial] = []
    for trial in far_trials(block, routing):
        unseen = {side.node for side in watch.unseen()}
        if not unseen and not reached:
            break
        if not unseen:  # what was rare is rare here, too, but may tell more
            if not trial.long:
                yield trial
            continue
        probe = watch.fork()
        outputs = [node.outputs[0] for node in block.nodes if node in unseen]
        try:
            trial.on(block).values_on(trial.x, trial.logits, outputs, probe)
        except (EvaluationError, MemoryError):
            continue
        if len(probe.unseen()) < len(watch.unseen()):
            yield trial
            reached.append(trial)
    if not watch.unseen():
        yield from combined_trials(block, routing, reached)
