"""The check that disposes: does a proposal compute what the cut-out block computes?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from moec.ir.dialect import ExpertsSpec
from moec.ir.semantics import experts
from moec.passes.raising.block import Block
from moec.passes.raising.facts import Array
from moec.passes.raising.failure import NotUnderstoodError
from moec.passes.raising.router import Routing
from moec.passes.raising.weights import ExpertTensor

TOLERANCE = 1e-5
"""Largest difference allowed between a row of y and the original's, relative to the row's largest entry."""

COMPARISONS = frozenset({"Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Min", "Clip"})
MOST_TOKENS = 2048

GATHER_BUDGET = 1 << 27
"""Bytes of weights a block may gather per evaluation: formulations that gather weights copy them for every token."""


@dataclasses.dataclass(frozen=True)
class Proposal:
    """Everything that is needed to write the raised operators."""

    routing: Routing
    spec: ExpertsSpec
    tensors: dict[str, ExpertTensor]

    def prepare(self) -> Callable[[Block, Array, Array], Array]:
        """A function from a block, rows x and logits to y [T,d] in float64; the weights are read once, here."""
        arrays = {name: tensor.array() for name, tensor in self.tensors.items()}

        def run(block: Block, x: Array, logits: Array) -> Array:
            weights, ids = self.routing.run(block, logits)
            return experts(self.spec, x, weights, ids, **arrays, dtype=np.float64)

        return run


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


def judge(block: Block, proposal: Proposal) -> Verdict:
    """Run the cut-out original and the proposal on all trials."""
    worst, worst_trial = 0.0, ""
    undefined: dict[str, str] = {}
    run = proposal.prepare()
    for trial in trials(block, proposal):
        try:
            want = block.y_of(trial.x, trial.logits)
        except Exception as error:  # a loop that cannot do without tokens stumbles in whatever operator comes first
            undefined[trial.name] = str(error).splitlines()[0][:160]
            continue
        found = difference(run(block, trial.x, trial.logits), want)
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
    E, d, k = block.E, block.d, proposal.routing.spec.k
    random = np.random.default_rng(3)
    most = _affordable_tokens(proposal) if block.gathers_weights() else MOST_TOKENS

    def trial(name: str, logits: Array, whole: bool = False) -> Iterator[Trial]:
        size = len(logits) if whole else most
        for start in range(0, max(1, len(logits)), max(size, 1)):
            part = logits[start : start + size]
            yield Trial(name, sample_rows(len(part), d), part)

    yield from trial("every expert", driving_logits(-(-2 * E // k) + 1, E, k))
    yield from trial("one expert preferred", np.zeros((3, E)) + 5 * (np.arange(E) == E - 1))
    yield from trial("ties", random.integers(0, 2, size=(4, E)).astype(float))
    yield from trial("one token", random.normal(size=(1, E)))
    yield from trial("no token", np.zeros((0, E)))
    crowd = _capacity_to_exceed(block, most)
    yield from trial("all tokens to one expert", np.zeros((crowd, E)) + 5 * (np.arange(E) == E // 2), whole=True)
    yield from trial("many tokens", random.normal(size=(min(most, 4 * E + 1), E)) * 3)


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


def _affordable_tokens(proposal: Proposal) -> int:
    """Tokens per evaluation such that the weights gathered for them stay within the budget (in float64)."""
    per_expert = sum(8 * int(np.prod(tensor.shape[1:])) for tensor in proposal.tensors.values())
    return max(1, GATHER_BUDGET // (per_expert * proposal.routing.spec.k))
