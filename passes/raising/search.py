"""From a block to a proposal that agrees with it, or to the reason why there is none."""

from __future__ import annotations

import dataclasses

import numpy as np

from moec.ir.dialect import ExpertsSpec
from moec.passes.raising.activation import activations
from moec.passes.raising.block import Block
from moec.passes.raising.check import TOLERANCE, Proposal, difference, driving_logits, judge, sample_rows
from moec.passes.raising.failure import NotUnderstoodError
from moec.passes.raising.router import Routing
from moec.passes.raising.weights import Arrangement


@dataclasses.dataclass(frozen=True)
class Match:
    """An accepted proposal, with the trials on which the original itself fails."""

    proposal: Proposal
    difference: float
    undefined: dict[str, str]


def find_match(block: Block, routings: list[Routing], arrangements: list[Arrangement]) -> Match:
    """The first proposal that passes the check. Raises NotUnderstoodError with the nearest miss."""
    nearest = "the shapes of its weights fit no layout of experts"
    for routing in routings[:3]:
        proposals = _ranked(block, routing, arrangements)
        for difference_seen, proposal in proposals[:2]:
            if difference_seen > TOLERANCE:
                nearest = _describe_miss(proposal, difference_seen)
                break
            verdict = judge(block, proposal)
            if verdict.agrees:
                return Match(proposal, verdict.difference, verdict.undefined)
            nearest = (
                f"the nearest proposal ({_describe(proposal.spec)}) differs by {verdict.difference:.1e} of the "
                f"output on the trial '{verdict.worst_trial}'"
            )
    raise NotUnderstoodError(nearest)


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


def _describe(spec: ExpertsSpec) -> str:
    return f"activation {spec.activation}, gate layout {spec.gate_layout}"


def _describe_miss(proposal: Proposal, seen: float) -> str:
    amount = "without bound" if np.isinf(seen) else f"by {seen:.1e} of the output"
    nearest = _describe(proposal.spec)
    return f"what its experts compute is not recognised: the nearest candidate ({nearest}) differs {amount}"
