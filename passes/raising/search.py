"""From a block to a proposal that agrees with it, or to the reason why there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from moec.ir.semantics import experts
from moec.passes.raising.activation import activations
from moec.passes.raising.block import Block
from moec.passes.raising.check import TOLERANCE, Proposal, difference, driving_logits, judge, sample_rows
from moec.passes.raising.facts import Array
from moec.passes.raising.failure import NotUnderstoodError
from moec.passes.raising.router import Routing
from moec.passes.raising.weights import Arrangement

MOST_ROUTINGS = 3
MOST_JUDGED = 4


@dataclasses.dataclass(frozen=True)
class Match:
    """An accepted proposal, with the trials on which the original itself fails."""

    proposal: Proposal
    difference: float
    undefined: dict[str, str]


def find_match(block: Block, routings: list[Routing], arrangements: list[Arrangement]) -> Match:
    """The first proposal that passes the check. Raises NotUnderstoodError with the nearest miss."""
    rejected: list[str] = []
    misses: list[tuple[float, Proposal]] = []
    for routing in routings[:MOST_ROUTINGS]:
        for found, proposal in _tried(block, routing, arrangements):
            if found > TOLERANCE:
                misses.append((found, proposal))
                continue
            verdict = judge(block, proposal)
            if verdict.agrees:
                return Match(proposal, verdict.difference, verdict.undefined)
            rejected.append(
                f"the proposal ({_describe(proposal)}) differs by {verdict.difference:.1e} of the output on the trial "
                f"'{verdict.worst_trial}'"
            )
            if len(rejected) == MOST_JUDGED:
                raise NotUnderstoodError(rejected[0])
    raise NotUnderstoodError(rejected[0] if rejected else _describe_nearest(misses))


def _tried(block: Block, routing: Routing, arrangements: list[Arrangement]) -> Iterator[tuple[float, Proposal]]:
    """All proposals with their difference from the original on a few tokens."""
    x, logits, want = _few_tokens(block, routing.spec.k)
    weights, ids = routing.run(block, logits)
    chosen, renumbered = np.unique(ids, return_inverse=True)
    chosen, renumbered = chosen[chosen >= 0], renumbered.reshape(ids.shape) - int((chosen < 0).any())
    for arrangement in arrangements:
        arrays = {name: t.array()[chosen].astype(np.float64) for name, t in arrangement.tensors.items()}
        for spec in activations(block, arrangement.spec):
            y = experts(spec, x, weights, renumbered, **arrays, dtype=np.float64)
            yield difference(y, want), Proposal(routing, spec, arrangement.tensors)


def _few_tokens(block: Block, k: int) -> tuple[Array, Array, Array | None]:
    """Rows, logits and the original's y for three tokens; where the original needs that, for all experts."""
    for T in (3, -(-2 * block.E // k) + 1):
        x, logits = sample_rows(T, block.d), driving_logits(T, block.E, k)
        try:
            return x, logits, block.y_of(x, logits)
        except Exception:  # a traced loop stumbles over experts without tokens
            continue
    raise NotUnderstoodError("the original cannot be run, not even with every expert selected")


def _describe(proposal: Proposal) -> str:
    route, spec = proposal.routing.spec, proposal.spec
    return f"router {route.score} top-{route.k}, activation {spec.activation}, gate layout {spec.gate_layout}"


def _describe_nearest(misses: list[tuple[float, Proposal]]) -> str:
    if not misses:
        return "the shapes of its weights fit no layout of experts"
    found, proposal = min(misses, key=lambda miss: miss[0])
    amount = "without bound" if np.isinf(found) else f"by {found:.1e} of the output"
    return f"what it computes is not recognised: the nearest candidate ({_describe(proposal)}) differs {amount}"
