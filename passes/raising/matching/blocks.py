"""Matching of a selection, or of a block, by readings that are tried one after the other."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Hashable

import onnx_ir as ir

from moec.common.errors import one_line
from moec.common.names import node_name
from moec.ir import dialect
from moec.ir.interpreter import EvaluationError
from moec.passes.raising.block import Block
from moec.passes.raising.candidates import Tried, candidate_blocks, find_logits
from moec.passes.raising.check import check_proposal
from moec.passes.raising.contractions import is_contraction
from moec.passes.raising.dataflow import DataFlow
from moec.passes.raising.failure import NoResultError, NoRouterError, NotUnderstoodError
from moec.passes.raising.formulations import FORMULATIONS
from moec.passes.raising.given_weights import placed_routings
from moec.passes.raising.isomorphic import Structure, structure_of, transfer
from moec.passes.raising.matching.diagnosis import diagnosed
from moec.passes.raising.matching.ordering import in_expert_order
from moec.passes.raising.matching.probing import probe_experts
from moec.passes.raising.matching.search import Match, checked, describe, find_match
from moec.passes.raising.matching.trail import Trail
from moec.passes.raising.mlps import check_structure, find_mlps
from moec.passes.raising.router import RoutingProposal, expert_vectors, propose_routings
from moec.passes.raising.row_proposal import propose_rows
from moec.passes.raising.unraised import why_no_candidate
from moec.passes.raising.weights import Arrangement, arrangements, with_factor

MOST_CANDIDATES = 3
"""Largest number of blocks around one selection that are tried."""


@dataclasses.dataclass(frozen=True)
class KnownBlocks:
    """Understood blocks, with their names, by the key of their structure, and the reasons against others by their
    borders."""

    understood: dict[Hashable, tuple[Structure, str, Match]] = dataclasses.field(default_factory=dict)
    refused: dict[Hashable, NotUnderstoodError] = dataclasses.field(default_factory=dict)
    tried: Tried = dataclasses.field(default_factory=Tried)


def understand(dataflow: DataFlow, anchor: ir.Node, blocks: KnownBlocks) -> tuple[Block | None, Match | None]:
    """The deepest candidate around ``anchor`` that is understood; (None, None) if it does not select experts at all.

    Raises NotUnderstoodError with the nearest miss, the deepest candidate's if all are equally far, if there are some
    but none is understood.
    """
    reasons: list[NotUnderstoodError] = []
    for logits in find_logits(dataflow, anchor):
        for block in itertools.islice(candidate_blocks(dataflow, anchor, logits, blocks.tried), MOST_CANDIDATES):
            try:
                return block, match_block(block, blocks)
            except NotUnderstoodError as reason:
                reasons.append(reason)
            if reasons[-1].undecided:
                break  # what cannot be seen in a block is in those around it, too
        if any(reason.is_mixture for reason in reasons):
            break  # what is not understood are the experts; from scores on instead of logits they are the same
    if reasons:
        nearest = min(reasons, key=lambda reason: reason.difference)
        nearest.attempts = tuple(dict.fromkeys(attempt for reason in reasons for attempt in reason.attempts))
        raise nearest
    _report_no_candidate(dataflow, anchor)
    return None, None


def _report_no_candidate(dataflow: DataFlow, anchor: ir.Node) -> None:
    """Raise NotUnderstoodError for a selection without a candidate if it does select among the outputs of a projection.

    A selection without a product after it (sampling the next token) needs no remark.
    """
    users = list(dataflow.readers(anchor.outputs))
    if any(map(dialect.is_moec, users)):
        return
    reason = why_no_candidate(dataflow, anchor)
    logits = find_logits(dataflow, anchor)
    if not logits or not is_contraction(logits[0].producer()):
        if reason is not None:
            raise NotUnderstoodError(reason, resembles=True)
        return
    branches = [node for node in users if node.op_type in ("If", "Loop", "Scan")]
    if branches:
        first = branches[0]
        raise NotUnderstoodError(f"control flow depends on its selection ({first.op_type} node {node_name(first)})")
    if reason is not None:
        sure = sum(map(is_contraction, users)) >= 2
        raise NotUnderstoodError(reason, resembles=not sure)


def match_block(block: Block, blocks: KnownBlocks, known_routing: RoutingProposal | None = None) -> Match:
    """Match a block. Raises NotUnderstoodError for every failure. ``known_routing`` is taken instead of
    a search."""
    trail = Trail("weights as the graph computes them" if known_routing is not None else "")
    borders = block.x, block.logits, block.y, block.start, block.weighing
    if borders in blocks.refused:  # routers that select in groups first lead to a block several times
        raise blocks.refused[borders]
    try:
        structure = structure_of(block)
        match = _match_isomorphic(block, structure, blocks, trail) or _search_block(block, known_routing, trail)
    except NotUnderstoodError as error:
        reason = error
    except MemoryError:
        reason = NotUnderstoodError("there is not enough memory to check what it computes")
    except Exception as error:  # a graph may hold anything; what stumbles over it has not understood it
        reason = NotUnderstoodError(f"it cannot be evaluated apart ({one_line(error)})")
    else:
        if structure is not None:
            blocks.understood.setdefault(structure.key, (structure, block.name, match))
        return match
    reason.attempts = tuple(trail.attempts)
    blocks.refused[borders] = reason
    raise reason


def _match_isomorphic(block: Block, structure: Structure | None, blocks: KnownBlocks, trail: Trail) -> Match | None:
    """The match of an earlier isomorphic block, if this one agrees with it, too."""
    if structure is None or structure.key not in blocks.understood:
        return None
    earlier, name, match = blocks.understood[structure.key]
    proposal = transfer(match.proposal, earlier, structure, block.dataflow)
    if proposal is None:
        return None
    verdict = check_proposal(block, proposal, isomorphic_agreed=True)
    if not verdict.agrees:
        reason = "its weights make another result than the same operators of that block"
        Trail(f"as block {name}", trail.attempts).add(reason, describe(proposal), 1, verdict.evidence)
        return None
    return dataclasses.replace(match, proposal=proposal, evidence=verdict.evidence, isomorphic_to=name)


def _search_block(block: Block, known_routing: RoutingProposal | None, trail: Trail) -> Match:
    if known_routing is not None:
        return _match_experts(block, [known_routing], trail)
    routings = propose_routings(block)
    try:
        return _match_experts(block, routings, trail)
    except NotUnderstoodError as error:
        reason = error
    placed = [] if reason.undecided else placed_routings(block)
    if placed:
        told_already = contextlib.suppress(NotUnderstoodError)  # the reason why the block stays
        with told_already, trail.reading("weights at places") as places:
            return _match_experts(block, placed, places)
    raise diagnosed(block, routings, reason)


def _match_experts(block: Block, routings: list[RoutingProposal], trail: Trail) -> Match:
    """Experts that agree with the block for one of these routings. Raises NotUnderstoodError if there are none."""
    if not routings:
        with trail.reading("known routers"):
            raise NoRouterError("no known router makes the weights that this one makes")
    try:
        with trail.reading("known operators") as operators:
            return _find_match(block, routings, operators, *_read_experts(block, routings[0]))
    except NotUnderstoodError as reason:
        if reason.undecided:
            raise
        read = reason
    except (EvaluationError, IndexError, ValueError) as error:  # shapes that only look as if they fit
        read = NotUnderstoodError(f"it cannot be evaluated apart ({one_line(error)})")
    try:
        with trail.reading("probing") as probing:
            arrangement, formulation, likely = probe_experts(block, routings)
            return _find_match(block, likely, probing, [arrangement], formulation)
    except NotUnderstoodError as reason:
        if reason.undecided:
            raise
        probed = reason
    try:
        with trail.reading("dispatched rows") as rows:
            return checked(block, propose_rows(block, routings), rows)
    except NoResultError:
        pass  # there are no rows to be judged, so what the other readings met is the reason
    except NotUnderstoodError as reason:
        if not block.gathers_weights():  # of those, any operators on rows can be read, and say nothing of the router
            probed = NotUnderstoodError(str(reason), reason.difference, is_mixture=True)
    raise _both(routings[0], read, probed)


def _both(routing: RoutingProposal, read: NotUnderstoodError, probed: NotUnderstoodError) -> NotUnderstoodError:
    """Combined reason for a block that neither reading nor probing understands."""
    if read.difference != probed.difference:
        return min(read, probed, key=lambda reason: reason.difference)
    routing_text = f"its router chooses {routing.spec.k} experts by {routing.spec.score}, but"
    reason = f"{routing_text} {read}{'' if str(read) == str(probed) else f'; {probed}'}"
    return NotUnderstoodError(reason, read.difference, is_mixture=probed.is_mixture)


def _read_experts(block: Block, routing: RoutingProposal) -> tuple[list[Arrangement], str]:
    """Possible experts' weights by the operators that read them, and the formulation: enough for plain blocks, without
    any computation. Raises NotUnderstoodError for all others."""
    mlps = find_mlps(block)
    check_structure(mlps, block.E)
    mlps = in_expert_order(block, mlps, routing)
    formulation = next((name for name, matches in FORMULATIONS.items() if matches(block, mlps)), None)
    if formulation is None:
        raise NotUnderstoodError("its experts follow no known formulation")
    return list(arrangements(block.dataflow, mlps, block.E, block.d)), formulation


def _find_match(
    block: Block, routings: list[RoutingProposal], trail: Trail, plain: list[Arrangement], formulation: str
) -> Match:
    every = [arrangement for arrangement in plain if not arrangement.ids]
    scaled = [with_factor(arrangement, factor) for factor in expert_vectors(block) for arrangement in every]
    return dataclasses.replace(find_match(block, routings, plain + scaled, trail), formulation=formulation)
