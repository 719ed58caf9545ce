"""Search for a proposal that agrees with a block, or for the reason why there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from moec.ir.dialect import EXPERT_WEIGHTS, ExpertsSpec
from moec.ir.expert_ids import mapped
from moec.ir.interpreter import EvaluationError
from moec.ir.products import rounded_rows
from moec.ir.semantics import activated, limited, pairs_by_expert, projections_in
from moec.ir.watch import Unseen
from moec.passes.framework.evidence import Evidence
from moec.passes.raising.activation import activations
from moec.passes.raising.block import Block
from moec.passes.raising.check import (
    TOLERANCE,
    Proposal,
    Verdict,
    check_proposal,
    check_weights,
    difference,
    tolerance,
)
from moec.passes.raising.dataflow import Array
from moec.passes.raising.failure import NotUnderstoodError
from moec.passes.raising.matching.trail import Trail
from moec.passes.raising.miniature import miniature
from moec.passes.raising.router import RoutingProposal
from moec.passes.raising.row_proposal import RowProposal
from moec.passes.raising.trials import drive_all, driving_logits, sample_rows
from moec.passes.raising.weights import Arrangement

MOST_ROUTINGS = 3
MOST_CHECKED = 4
FAR = 1e5


@dataclasses.dataclass(frozen=True)
class Match:
    """An accepted proposal, with the trials on which the original itself fails, its formulation, and assumptions about
    sizes. ``reading``: the way in which it was found. ``isomorphic_to``: the block that it was taken over from."""

    proposal: Proposal | RowProposal
    undefined: dict[str, str]
    evidence: Evidence
    reading: str
    formulation: str = ""
    assumed: tuple[str, ...] = ()
    isomorphic_to: str = ""


def find_match(
    block: Block, routings: list[RoutingProposal], arrangements: list[Arrangement], trail: Trail | None = None
) -> Match:
    """The first proposal that passes the check. Raises NotUnderstoodError with the nearest miss. ``trail`` keeps those
    that do not pass."""
    trail = Trail() if trail is None else trail
    rejected: list[NotUnderstoodError] = []
    misses: list[tuple[float, Proposal]] = []
    for distance, proposal in _worth_a_check(block, routings, arrangements, misses):
        try:
            return checked(block, proposal, trail, distance)
        except NotUnderstoodError as reason:
            if reason.undecided:
                raise
            rejected.append(reason)
        if len(rejected) == MOST_CHECKED:
            raise rejected[0]
    if rejected:
        raise rejected[0]
    reason = _nearest_miss(misses)
    nearest = describe(min(misses, key=lambda miss: miss[0])[1]) if misses else ""
    trail.add(str(reason), nearest, len(misses))
    raise reason


def _worth_a_check(
    block: Block, routings: list[RoutingProposal], arrangements: list[Arrangement], misses: list[tuple[float, Proposal]]
) -> Iterator[tuple[float, Proposal]]:
    """Proposals that agree on a few tokens; then, nearest first, those that do within the rounding of 16 bits. All
    others go to ``misses``."""
    near = tolerance(block)
    rounded: list[tuple[float, Proposal]] = []
    for routing in routings[:MOST_ROUTINGS]:
        for distance, proposal in _tried(block, routing, arrangements):
            if distance <= TOLERANCE:
                yield distance, proposal
            else:
                (rounded if distance <= near else misses).append((distance, proposal))
    yield from sorted(rounded, key=lambda miss: miss[0])


def checked(block: Block, proposal: Proposal | RowProposal, trail: Trail, distance: float = 0.0) -> Match:
    """A proposal that passes the check. Raises NotUnderstoodError for any other; ``distance``: how far it was from the
    original on a few tokens."""
    verdict = _verdict(block, proposal)
    if verdict.agrees:
        return Match(proposal, verdict.undefined, verdict.evidence, trail.name, assumed=tuple(verdict.assumed))
    if verdict.is_near:
        reason = _undecided(verdict.unseen)
    else:
        differs = f"differs by {verdict.difference:.1e} of the output on the trial '{verdict.worst_trial}'"
        reason = f"the proposal ({describe(proposal)}) {differs}"
    trail.add(reason, describe(proposal), 1, verdict.evidence)
    raise NotUnderstoodError(reason, distance, undecided=verdict.is_near)


def _verdict(block: Block, proposal: Proposal | RowProposal) -> Verdict:
    """Trials on a miniature of the block where it has one that agrees, else on the block itself."""
    small = miniature(block, proposal) if isinstance(proposal, Proposal) else None
    tried = None if small is None else check_proposal(*small)
    if not isinstance(proposal, Proposal) or tried is None or not tried.agrees:
        return check_proposal(block, proposal)
    return check_weights(block, proposal, tried)


def _tried(block: Block, routing: RoutingProposal, arrangements: list[Arrangement]) -> Iterator[tuple[float, Proposal]]:
    """All proposals with their difference from the original on a few tokens and outputs."""
    probe = _RouterProbe.of(block, routing)
    for arrangement in arrangements:
        own = dataclasses.replace(probe, ids=mapped(arrangement.ids, probe.ids))
        inner = {placed: own.project(arrangement, placed) for placed in (False, True)}
        down = own.down(arrangement)
        for spec in activations(block, arrangement.spec):
            y = own.finish(spec, inner[spec.weight_on_input], down, arrangement.tensors["down"].shape[0])
            yield difference(y, own.y), Proposal(routing, spec, arrangement.tensors, arrangement.ids)


@dataclasses.dataclass(frozen=True)
class _RouterProbe:
    """A few tokens n that prefer the same experts, two of them far from zero so that limits show, and a few of the
    original's outputs for them: y [n, outputs]. Tokens for which the original overflows are left out.

    Whether an activation fits shows in any output, so projections into the experts are computed once for all
    activations, and projections out of them for a few outputs alone.
    """

    x: Array
    weights: Array
    ids: Array
    outputs: Array
    y: Array | None

    @staticmethod
    def of(block: Block, routing: RoutingProposal) -> _RouterProbe:
        """Raises NotUnderstoodError if the original cannot be run: neither on these tokens, nor with more of them that
        drive all experts, as a traced loop may need."""
        E, k = block.E, routing.spec.k
        alike = driving_logits(1, E, k) * np.array([[1.0], [0.9], [1.1], [1.0], [1.0]])
        n = len(alike)
        outputs = np.unique(np.linspace(0, block.d - 1, 16).astype(int))
        for more in (np.zeros((0, E)), drive_all(block, routing, -(-2 * E // k) + 1)):
            logits = np.concatenate([alike, more])
            x = sample_rows(len(logits), block.d)
            x[3:n] *= FAR
            try:
                y = block.y_of(x, logits)
            except EvaluationError:
                continue
            weights, ids = routing.run(block, logits)
            kept = np.arange(n) if y is None else np.flatnonzero(np.isfinite(y[:n]).all(axis=1))
            return _RouterProbe(x[kept], weights[kept], ids[kept], outputs, None if y is None else y[kept][:, outputs])
        raise NotUnderstoodError("the original fails even with every expert selected")

    def _pairs(self, stored: int) -> Iterator[tuple[int, Array, Array]]:
        """Every selected expert of those that are stored, its tokens [n], and their weights for it [n,1]."""
        for expert, tokens, slots in pairs_by_expert(np.where(self.ids < stored, self.ids, -1)):
            yield expert, tokens, self.weights[tokens, slots, None]

    def project(self, arrangement: Arrangement, weight_on_input: bool) -> list[tuple[Array | None, Array]]:
        """Gate and up projections of each selected expert."""
        projections = []
        tensors = arrangement.tensors
        for expert, tokens, scale in self._pairs(tensors["down"].shape[0]):
            parts = {name: tensors[name][expert] if name in tensors else None for name in EXPERT_WEIGHTS}
            rows = self.x[tokens] * scale if weight_on_input else self.x[tokens]
            projections.append(projections_in(arrangement.spec, rows, parts))
        return projections

    def down(self, arrangement: Arrangement) -> list[tuple[Array, Array | float]]:
        """Weights [f, outputs] and bias of each selected expert's down projection."""
        weight, bias = arrangement.tensors["down"], arrangement.tensors.get("down_bias")
        projections = []
        for expert, _, _ in self._pairs(weight.shape[0]):
            columns = weight[expert] if arrangement.spec.down_transposed else weight[expert].T
            projections.append(
                (columns[:, self.outputs].astype(np.float64), bias[expert][self.outputs] if bias else 0.0)
            )
        return projections

    def finish(
        self,
        spec: ExpertsSpec,
        inner: list[tuple[Array | None, Array]],
        down: list[tuple[Array, Array | float]],
        stored: int,
    ) -> Array:
        """y [n, outputs] for an activation; experts from ``stored`` on return their token."""
        y = self.x[:, self.outputs] * np.where(self.ids < stored, 0, self.weights).sum(axis=1, keepdims=True)
        with np.errstate(all="ignore"):
            for (_, tokens, scale), projected, (columns, bias) in zip(self._pairs(stored), inner, down, strict=True):
                result = limited(spec, rounded_rows(spec, activated(spec, *projected)) @ columns + bias)
                y[tokens] += result if spec.weight_on_input else result * scale
        return y


def describe(proposal: Proposal | RowProposal) -> str:
    """The router and the experts of a proposal in one line."""
    if isinstance(proposal, RowProposal):
        return str(proposal)
    route, spec = proposal.routing.spec, proposal.spec
    return f"router {route.score} top-{route.k}, activation {spec.activation}, gate layout {spec.gate_layout}"


def _undecided(unseen: list[Unseen]) -> str:
    others = f", nor {len(unseen) - 1} others" if len(unseen) > 1 else ""
    return f"no input was found that takes one side of a decision ({unseen[0]}){others}"


def _nearest_miss(misses: list[tuple[float, Proposal]]) -> NotUnderstoodError:
    if not misses:
        return NotUnderstoodError("the shapes of its weights fit no layout of experts")
    distance, proposal = min(misses, key=lambda miss: miss[0])
    amount = "without bound" if np.isinf(distance) else f"by {distance:.1e} of the output"
    reason = f"what it computes is not recognised: the nearest candidate ({describe(proposal)}) differs {amount}"
    return NotUnderstoodError(reason, distance)
