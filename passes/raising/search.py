"""From a block to a proposal that agrees with it, or to the reason why there is none."""

from __future__ import annotations

import dataclasses

import numpy as np

from moec.passes.raising.activation import activations
from moec.passes.raising.block import Block
from moec.passes.raising.check import TOLERANCE, Proposal, difference, driving_logits, judge, sample_rows
from moec.passes.raising.failure import NotUnderstoodError
from moec.passes.raising.router import Routing
from moec.passes.raising.weights import Arrangement

MOST_ROUTINGS = 3


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
        for found, proposal in _ranked(block, routing, arrangements)[:2]:
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
    raise NotUnderstoodError(rejected[0] if rejected else _describe_nearest(misses))


def _ranked(block: Block, routing: Routing, arrangements: list[Arrangement]) -> list[tuple[float, Proposal]]:
    """Proposals with their difference on a few tokens, best first."""
    k = routing.spec.k
    T = max(2, -(-block.E // k))
    x, logits = sample_rows(T, block.d), driving_logits(T, block.E, k)
    want = block.y_of(x, logits)
    ranked = []
    for arrangement in arrangements:
        for spec in activations(block, arrangement.spec):
            proposal = Proposal(routing, spec, arrangement.tensors)
            ranked.append((difference(proposal.run(block, x, logits), want), proposal))
    return sorted(ranked, key=lambda pair: pair[0])


def _describe(proposal: Proposal) -> str:
    route, spec = proposal.routing.spec, proposal.spec
    return f"router {route.score} top-{route.k}, activation {spec.activation}, gate layout {spec.gate_layout}"


def _describe_nearest(misses: list[tuple[float, Proposal]]) -> str:
    if not misses:
        return "the shapes of its weights fit no layout of experts"
    found, proposal = min(misses, key=lambda miss: miss[0])
    amount = "without bound" if np.isinf(found) else f"by {found:.1e} of the output"
    return f"what it computes is not recognised: the nearest candidate ({_describe(proposal)}) differs {amount}"
