"""The check that decides: whether a proposal computes the same as the block."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir

from moec.common.mapped_files import release_pages
from moec.common.names import node_name
from moec.ir.dialect import ExpertsSpec
from moec.ir.expert_ids import mapped
from moec.ir.facts import Facts
from moec.ir.interpreter import EvaluationError
from moec.ir.semantics import experts
from moec.ir.watch import Unseen, Watch
from moec.passes.framework.evidence import SMALLEST, Evidence, cut, grouped, recorded
from moec.passes.raising.block import Block
from moec.passes.raising.coverage import idle_nodes, reaching_trials, roundings, watch_block
from moec.passes.raising.dataflow import Array, DataFlow
from moec.passes.raising.reaching import reaching
from moec.passes.raising.router import RoutingProposal
from moec.passes.raising.row_proposal import RowProposal
from moec.passes.raising.size_scan import SizedGraph, SizeScan, sizes_text
from moec.passes.raising.trial_log import TrialLog, decision_records
from moec.passes.raising.trials import (
    LAYOUT_SHARE,
    Trial,
    is_affordable,
    laid_out,
    layouts,
    one_token_per_expert,
    trials,
)
from moec.passes.raising.weights import ExpertTensor

TOLERANCE = 1e-5
"""Largest difference allowed between a row of y and the original's, relative to the row's largest entry; for 16 bits
see :func:`tolerance`."""

ROUNDING = 1e-4
"""The same of a trial in float32."""


@dataclasses.dataclass(frozen=True)
class Proposal:
    """Everything that is needed to write the raised operators. ``ids``: for each id of the router that of an expert
    whose weights these are, -1 for one that adds nothing; empty where they are the same."""

    routing: RoutingProposal
    spec: ExpertsSpec
    tensors: dict[str, ExpertTensor]
    ids: tuple[int, ...] = ()

    @property
    def absent(self) -> list[int]:
        """The router's ids of experts that add nothing to y."""
        return [expert for expert, stored in enumerate(self.ids) if stored < 0]

    @property
    def used(self) -> set[ir.Value]:
        """The constants that it takes for weights and biases."""
        parts = (value for tensor in self.tensors.values() for value in (*tensor.parts, tensor.factor))
        return {value for value in (self.routing.correction_bias, *parts) if value is not None}

    def moved(
        self, counterparts: Mapping[ir.Value, ir.Value], routing: RoutingProposal, dataflow: DataFlow
    ) -> Proposal:
        """The same with other constants."""
        tensors = {name: tensor.moved(counterparts, dataflow) for name, tensor in self.tensors.items()}
        return Proposal(routing, self.spec, tensors, self.ids)

    def run(self, block: Block, x: Array, logits: Array) -> Array:
        """y [T,d] in float64 for rows x [T,d] and logits [T,E]."""
        weights, ids = self.routing.run(block, logits)
        return experts(self.spec, x, weights, mapped(self.ids, ids), **self.tensors, dtype=np.float64)


def tolerance(block: Block) -> float:
    """Largest allowed difference between a row of y and the original's, relative to the row's largest entry. In 16 bits
    it is the rounding of y, if that is more, because hidden units and the numbers of their activation are rounded
    alike."""
    if any(value.dtype is None or value.dtype.bitwidth > 16 for value in (block.x, block.y)):
        return TOLERANCE
    assert block.y.dtype is not None
    return max(TOLERANCE, float(ml_dtypes.finfo(block.y.dtype.numpy()).eps) / 2)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Result of a check. ``difference`` is the worst over all trials, ``tolerance`` the allowed one. ``undefined`` are
    the trials that the original cannot run, with reasons. ``unseen`` are the sides of its decisions that no trial took
    and no interval excludes. ``assumed`` describes sizes that were not tried. ``evidence`` is the same for people."""

    difference: float
    tolerance: float
    worst_trial: str
    undefined: dict[str, str]
    unseen: list[Unseen]
    evidence: Evidence
    assumed: list[str] = dataclasses.field(default_factory=list)

    @property
    def agrees(self) -> bool:
        return self.is_near and not self.unseen

    @property
    def is_near(self) -> bool:
        return self.difference <= self.tolerance


def check_proposal(block: Block, proposal: Proposal | RowProposal, *, isomorphic_agreed: bool = False) -> Verdict:
    """Run the original and the proposal on all trials, and on further inputs until every side of the
    original's decisions is seen. A trial that differs ends the search.

    ``isomorphic_agreed``: the same proposal passed all trials for an isomorphic block. Then only weights can differ,
    and one trial that drives every expert decides.
    """
    if isomorphic_agreed:  # whose decisions were seen; there is nothing to watch
        return _driven(block, proposal).verdict()
    comparison = _Comparison(block, proposal, watch_block(block, proposal.used))
    comparison.run_all(trials(block, proposal.routing))
    if comparison.agrees and comparison.watch.unseen():
        start = next(one_token_per_expert(block, proposal.routing))
        comparison.watch.dismiss(idle_nodes(block, comparison.watch, start))
    if comparison.agrees:
        comparison.run_all(reaching_trials(block, proposal.routing, comparison.watch))
    for layout in layouts(block):
        if not is_affordable(block, layout):
            beyond = f"which take more rows than {LAYOUT_SHARE} evaluations hold"
            comparison.assumed.append(f"sizes {sizes_text(layout)} agree, {beyond}")
    if comparison.agrees and not comparison.watch.unseen():
        comparison.run_sizes()
    rounded = roundings(block)
    if comparison.agrees and not rounded:
        comparison.run_rounded()
    return comparison.verdict(rounded)


def check_weights(block: Block, proposal: Proposal, tried: Verdict) -> Verdict:
    """Run the original and the proposal on trials that drive every expert, and once in float32. For blocks whose
    miniature, isomorphic except for widths, has agreed on all trials (``tried``)."""
    comparison = _driven(block, proposal)
    if comparison.agrees:
        comparison.run_rounded()
    verdict = comparison.verdict()
    undefined = tried.undefined | verdict.undefined
    evidence = _with_miniature(verdict.evidence, tried.evidence)
    return dataclasses.replace(verdict, undefined=undefined, evidence=evidence, assumed=tried.assumed)


def _with_miniature(own: Evidence, small: Evidence) -> Evidence:
    """The evidence of a block and its miniature, which has the decisions."""
    trials = tuple(dataclasses.replace(trial, miniature=True) for trial in small.trials)
    worst = own if own.difference is None or (small.difference or 0) <= own.difference else small
    return dataclasses.replace(
        small, difference=worst.difference, worst_trial=worst.worst_trial, trials=(*trials, *own.trials)
    )


def _driven(block: Block, proposal: Proposal | RowProposal) -> _Comparison:
    comparison = _Comparison(block, proposal, Watch([], Facts()))
    comparison.run_all(one_token_per_expert(block, proposal.routing))
    return comparison


@dataclasses.dataclass
class _Comparison:
    """The trials so far, and their results."""

    block: Block
    proposal: Proposal | RowProposal
    watch: Watch
    worst: float = 0.0
    worst_trial: str = ""
    undefined: dict[str, str] = dataclasses.field(default_factory=dict)
    failing: set[Unseen] = dataclasses.field(default_factory=set)
    """Sides that were taken where the original fails, or where a slice has nothing to take from."""
    layouts: list[dict[str, int]] = dataclasses.field(default_factory=list)
    """The sizes of trials that gave a verdict."""
    beyond: list[Unseen] = dataclasses.field(default_factory=list)
    """Values that change at sizes that no trial can have."""
    assumed: list[str] = dataclasses.field(default_factory=list)
    """Assumptions that no trial has shown."""
    log: TrialLog = dataclasses.field(default_factory=TrialLog)

    def run_all(self, chosen: Iterable[Trial]) -> None:
        for trial in chosen:
            self.log.add(trial.name, len(trial.x), self._run(trial), self.tolerance)
            release_pages()
            if not self.agrees:
                return

    def _run(self, trial: Trial) -> float | str:
        """Run a trial. Returns the difference, or the reason why the original fails."""
        seen, block = self.watch.fork(), trial.on(self.block)
        try:
            want = block.y_of(trial.x, trial.logits, seen)
        except EvaluationError as error:  # a loop that cannot do without tokens stumbles in whatever operator is first
            if not trial.extreme:
                self.undefined[trial.name] = str(error)
            if len(trial.x):
                self.failing.update(set(self.watch.unseen()).difference(seen.unseen()))
            return str(error)
        got = self.proposal.run(block, trial.x, trial.logits)
        if want is None or got.size != want.size:
            return self._note(trial, float("inf"))
        compared = np.isfinite(want).all(axis=1) | (not trial.extreme)
        distance = self._note(trial, difference(got[compared], want[compared]))
        telling = compared & (want.any(axis=1) | (not trial.extreme))
        if not telling.any():  # whatever was decided, no row shows it
            if not len(trial.x):  # data that one token makes longer than a slice's bounds is so for all numbers of them
                newly = set(self.watch.unseen()).difference(seen.unseen())
                self.failing.update(side for side in newly if side.node.op_type == "Slice")
            return distance
        if telling.all():
            self.layouts.append(block.sizes_at(block.rows_for(len(trial.x))))
            self.watch.adopt(reaching(block, trial, self.watch, seen), trial.name)
        else:
            self._run(Trial(trial.name, trial.x[telling], trial.logits[telling]))
        return distance

    def run_sizes(self) -> None:
        """Run trials at sizes for which a value computed only from sizes differs from all trials so far."""
        scan, most = SizeScan.of(SizedGraph.of_block(self.block)), self.block.most_tokens()

        def fits(layout: Mapping[str, int]) -> bool:
            return self.block.rows_of(layout) <= most

        tried: list[Mapping[str, int]] = []
        seen = [dict(layout) for layout in dict.fromkeys(tuple(layout.items()) for layout in self.layouts)]
        for node, layout in scan.differing(seen, fits):
            if not fits(layout):
                self.beyond.append(scan.unseen(node, layout))
            elif layout not in tried:
                tried.append(layout)
                self.run_all([laid_out(self.block, "sizes at which something changes", layout)])
            if not self.agrees:
                return
        if varying := scan.varying(seen):
            self.assumed.append(_goes_on(varying, seen))

    def run_rounded(self) -> None:
        """Run a trial in float32, if the block is in it: adding a large number and subtracting it again rounds, too."""
        block = self.block
        if any(value.dtype != ir.DataType.FLOAT for value in (block.x, block.logits, block.y)):
            return
        trial = next(one_token_per_expert(block, self.proposal.routing))
        rows = len(trial.x) if not block.rows_are_fixed else block.row_step
        x, logits = trial.x[:rows], trial.logits[:rows]
        try:
            want = block.y_in_own_types(x, logits)
        except EvaluationError as error:
            self.undefined["in float32"] = str(error)
            self.log.add("in float32", len(x), str(error), ROUNDING)
            return
        distance = difference(self.proposal.run(block, x, logits), want)
        self.log.add("in float32", len(x), distance, ROUNDING)
        if distance > ROUNDING:
            self._note(dataclasses.replace(trial, name="in float32"), float("inf"))

    @property
    def agrees(self) -> bool:
        return self.worst <= self.tolerance

    @functools.cached_property
    def tolerance(self) -> float:
        return tolerance(self.block)

    def _note(self, trial: Trial, difference: float) -> float:
        if difference > self.worst:
            self.worst, self.worst_trial = difference, trial.name
        return difference

    def verdict(self, unseen: Sequence[Unseen] = ()) -> Verdict:
        """The verdict, with sides ``unseen`` that no trial can show. A side that is only taken where the original fails
        does not count."""
        evidence = self._evidence([*unseen, *self.beyond])
        unseen = [*unseen, *self.beyond, *(side for side in self.watch.unseen() if side not in self.failing)]
        if "every expert" in self.undefined:
            return Verdict(float("inf"), self.tolerance, "every expert", self.undefined, unseen, evidence)
        return Verdict(self.worst, self.tolerance, self.worst_trial, self.undefined, unseen, evidence, self.assumed)

    def _evidence(self, unseen: Sequence[Unseen]) -> Evidence:
        """Evidence for people; where a trial differs, that decides, and no decision."""
        decisions = grouped(decision_records(self.watch, self.failing, unseen)) if self.agrees else ((), 0)
        worst, trials = recorded(self.worst), self.log.records()
        worst_trial = "" if worst == SMALLEST else self.worst_trial
        return Evidence(worst, self.tolerance, worst_trial, trials, *decisions, tuple(map(cut, self.assumed)))


def _goes_on(varying: Sequence[ir.Node], seen: Sequence[Mapping[str, int]]) -> str:
    last, others = varying[-1], len(varying) - 1
    also = f", and {others} other values do" if others else ""
    largest = {symbol: max(layout[symbol] for layout in seen) for symbol in seen[0]}
    tried = f"beyond {sizes_text(largest)}, the largest sizes that were tried"
    return f"{last.op_type} node {node_name(last)!r}, made of sizes, goes on as before {tried}{also}"


def difference(got: Array, want: Array | None) -> float:
    """The worst row: largest absolute difference over largest absolute entry. Infinite where either is not finite."""
    if want is None or got.size != want.size:
        return float("inf")
    if got.size == 0:
        return 0.0
    expected: Array = want.reshape(got.shape)
    if not (np.isfinite(got).all() and np.isfinite(expected).all()):
        return float("inf")
    scale = np.maximum(np.abs(expected).max(axis=1), 1e-30)
    return float((np.abs(got - expected).max(axis=1) / scale).max())
