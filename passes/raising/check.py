"""The check that disposes: does a proposal compute what the cut-out block computes?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from moec.ir.dialect import ExpertsSpec
from moec.ir.interpreter import EvaluationError
from moec.ir.mapped_files import release_pages
from moec.ir.semantics import experts
from moec.passes.raising.block import MOST_TOKENS, Block
from moec.passes.raising.facts import Array
from moec.passes.raising.failure import NotUnderstoodError
from moec.passes.raising.router import Routing
from moec.passes.raising.weights import ExpertTensor

TOLERANCE = 1e-5
"""Largest difference allowed between a row of y and the original's, relative to the row's largest entry."""

COMPARISONS = frozenset({"Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Min", "Clip"})


@dataclasses.dataclass(frozen=True)
class Proposal:
    """Everything that is needed to write the raised operators."""

    routing: Routing
    spec: ExpertsSpec
    tensors: dict[str, ExpertTensor]

    def run(self, block: Block, x: Array, logits: Array) -> Array:
        """y [T,d] in float64 for rows x [T,d] and logits [T,E]."""
        weights, ids = self.routing.run(block, logits)
        return experts(self.spec, x, weights, ids, **self.tensors, dtype=np.float64)


@dataclasses.dataclass(frozen=True)
class Trial:
    """Inputs to compare on: rows x [T,d] and logits [T,E]."""

    name: str
    x: Array
    logits: Array


@dataclasses.dataclass(frozen=True)
class Verdict:
    """``difference`` is the worst over all trials; ``undefined`` are the trials the original cannot run, and why."""

    difference: float
    worst_trial: str
    undefined: dict[str, str]

    @property
    def agrees(self) -> bool:
        return self.difference <= TOLERANCE


def judge(block: Block, proposal: Proposal, *, has_judged_twin: bool = False) -> Verdict:
    """Run the cut-out original and the proposal on all trials.

    For a block that has an equal one, for which the same proposal passed all trials, only weights can differ: then one
    trial that drives every expert decides.
    """
    worst, worst_trial = 0.0, ""
    undefined: dict[str, str] = {}
    for trial in one_token_per_expert(block, proposal) if has_judged_twin else trials(block, proposal):
        try:
            want = block.y_of(trial.x, trial.logits)
        except EvaluationError as error:  # a loop that cannot do without tokens stumbles in whatever operator is first
            undefined[trial.name] = str(error)
            continue
        found = difference(proposal.run(block, trial.x, trial.logits), want)
        release_pages()
        if found > worst:
            worst, worst_trial = found, trial.name
    if "every expert" in undefined:
        return Verdict(float("inf"), "every expert", undefined)
    return Verdict(worst, worst_trial, undefined)


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


def sample_rows(T: int, d: int) -> Array:
    """Rows x [T,d] of very different magnitude, so that limits and saturating activations show."""
    return np.random.default_rng(1).normal(size=(T, d)) * np.resize([8.0, 1.0, 0.3, 60.0], T)[:, None]


def driving_logits(T: int, E: int, k: int) -> Array:
    """Logits [T,E] in which token t prefers experts t*k to t*k+k-1 (modulo E)."""
    logits = np.random.default_rng(2).normal(size=(T, E))
    preferred = (np.arange(T)[:, None] * k + np.arange(k)) % E
    np.put_along_axis(logits, preferred, 4 + np.take_along_axis(logits, preferred, 1), axis=1)
    return logits


def trials(block: Block, proposal: Proposal) -> Iterator[Trial]:
    """Every expert driven, one expert preferred, ties, one token, no token, many tokens."""
    E, k, most = block.E, proposal.routing.spec.k, block.tokens_at_once()
    random = np.random.default_rng(3)
    yield from _in_parts(block, "every expert", drive_all(block, proposal.routing, -(-E // k) + 1))
    yield from _in_parts(block, "one expert preferred", np.zeros((3, E)) + 5 * (np.arange(E) == E - 1))
    yield from _in_parts(block, "ties", random.integers(0, 2, size=(4, E)).astype(float))
    yield from _in_parts(block, "one token", random.normal(size=(1, E)))
    yield from _in_parts(block, "no token", np.zeros((0, E)))
    crowd = _capacity_to_exceed(block, most)
    yield _trial(block, "all tokens to one expert", np.zeros((crowd, E)) + 5 * (np.arange(E) == E // 2))
    yield from _in_parts(block, "many tokens", random.normal(size=(min(most, 4 * E + 1), E)) * 3)


def one_token_per_expert(block: Block, proposal: Proposal) -> Iterator[Trial]:
    """Every expert driven, by as few tokens as the original can do with."""
    logits = drive_all(block, proposal.routing, -(-block.E // proposal.routing.spec.k))
    return _in_parts(block, "every expert", logits)


def _trial(block: Block, name: str, logits: Array) -> Trial:
    return Trial(name, sample_rows(len(logits), block.d), logits)


def _in_parts(block: Block, name: str, logits: Array) -> Iterator[Trial]:
    """One trial, or several where one evaluation of the original cannot take so many tokens."""
    size = block.tokens_at_once()
    return (_trial(block, name, logits[start : start + size]) for start in range(0, max(1, len(logits)), size))


def drive_all(block: Block, routing: Routing, T: int) -> Array:
    """Logits of T tokens or more for which the routing selects every expert that a logit can make it select."""
    logits = driving_logits(T, block.E, routing.spec.k)
    for logit in (8.0, 64.0):  # a correction bias, or groups, may stand against what the logits prefer
        missing = np.setdiff1d(np.arange(block.E), routing.run(block, logits)[1])
        more = np.random.default_rng(5).normal(size=(len(missing), block.E))
        more[np.arange(len(missing)), missing] += logit
        logits = np.concatenate([logits, more])
    return logits


def _capacity_to_exceed(block: Block, most: int) -> int:
    """More tokens than any number that the router compares with: a capacity per expert would then drop some.

    Raises NotUnderstoodError where tokens are counted and the number is too large to be tried.
    """
    facts, nodes = block.facts, block.router_nodes()
    if not any(node.op_type == "CumSum" for node in nodes):
        return min(2 * block.E, most)
    compared = (facts.scalar(v) for n in nodes if n.op_type in COMPARISONS for v in n.inputs)
    limit = max((int(number) for number in compared if number is not None and np.isfinite(number)), default=0)
    if limit > MOST_TOKENS:
        raise NotUnderstoodError(f"its router counts tokens (CumSum) and compares with {limit}, too many to try out")
    return max(2 * block.E, 2 * limit + 2)
