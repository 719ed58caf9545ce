"""The pass that finds MoE blocks and replaces each by one Route and one Experts operator."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Hashable
from typing import ClassVar

import onnx_ir as ir

from moec.errors import one_line
from moec.ir import dialect
from moec.ir.interpreter import EvaluationError
from moec.ir.names import node_name
from moec.passes.framework.base import Exactness, Report, Unraised
from moec.passes.graph.edits import is_op
from moec.passes.raising.block import Block, is_contraction, width
from moec.passes.raising.candidates import SELECTIONS, candidate_blocks, find_logits
from moec.passes.raising.check import check_proposal
from moec.passes.raising.dataflow import DataFlow
from moec.passes.raising.failure import NotUnderstoodError
from moec.passes.raising.formulations import FORMULATIONS
from moec.passes.raising.isomorphic import Structure, structure_of, transfer
from moec.passes.raising.mlps import check_structure, find_mlps
from moec.passes.raising.ordering import in_expert_order
from moec.passes.raising.probing import probe_experts
from moec.passes.raising.rewrite import replace
from moec.passes.raising.router import Routing, expert_vectors, propose_routings
from moec.passes.raising.search import Match, find_match
from moec.passes.raising.unraised import resemblances, why_no_candidate
from moec.passes.raising.weights import Arrangement, arrangements, with_factor

MOST_CANDIDATES = 3


@dataclasses.dataclass(frozen=True)
class Known:
    """Blocks that were understood by the key of their structure, and why others were not by their borders."""

    understood: dict[Hashable, tuple[Structure, Match]] = dataclasses.field(default_factory=dict)
    refused: dict[Hashable, NotUnderstoodError] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class RaiseMoE:
    """Replace every recognised MoE block by ``moec.Route`` and ``moec.Experts``.

    1. A selection (TopK, ArgMax) is where the search starts. The block around it is a region of the data flow: logits
       before it, y behind it, x before both. Shared experts and residual sums stay outside.
    2. RouteSpecs are tried on sample logits to identify the router, ExpertsSpecs on sample rows for the experts.
    3. A proposal is applied only if it agrees with the original on all trials (see ``raising.check``); what looked
       like experts and does not agree is reported and left as it is.
    4. What resembles a mixture and gives no region to try (scores that weigh all experts, a table of experts, a
       selection among other things than columns of logits) gets a note.
    5. A block isomorphic to an earlier one, equal but for its weights, is tried as the same first, on rows
       that reach every expert.

    ::

        (float[T,6] x) => (float[T,6] y)
           <float[6,4] gate, float[4,6,5] up, float[4,5,6] down, int64[1] k = {2}, int64[1] last = {-1}> {
           logits = MatMul (x, gate)
           scores = Softmax <axis = -1> (logits)
           top, chosen = TopK <axis = -1> (scores, k)
           total = ReduceSum <keepdims = 1> (top, last)
           w = Div (top, total)
           shape = Shape (scores)
           zeros = ConstantOfShape (shape)
           mixture = ScatterElements <axis = -1> (zeros, chosen, w)
           h = Einsum <equation = "td,edf->tef"> (x, up)
           a = Relu (h)
           o = Einsum <equation = "tef,efd->ted"> (a, down)
           y = Einsum <equation = "ted,te->td"> (o, mixture)
        }
            infer-shapes,raise-moe,remove-dead-nodes ->
        (float[T,6] x) => (float[T,6] y) <float[6,4] gate, float[4,6,5] up, float[4,5,6] down> {
           logits = MatMul (x, gate)
           "y.weights", "y.experts" = moec.Route <k = 2, normalize = 1> (logits)
           y = moec.Experts <activation = "relu", down_transposed = 1, gate_layout = "none", up_transposed = 1>
              (x, "y.weights", "y.experts", up, down)
        }
    """

    name: ClassVar[str] = "raise-moe"
    exactness: ClassVar[Exactness] = "reassociating"

    def apply(self, model: ir.Model, report: Report) -> bool:
        changed = False
        understood: set[ir.Node] = set()
        known = Known()
        failures: list[_Failure] = []
        dataflow = DataFlow(model.graph)
        for anchor in [node for node in model.graph if is_op(node, *SELECTIONS)]:
            if anchor in understood:
                continue
            try:
                block, match = _understand(dataflow, anchor, known)
            except NotUnderstoodError as reason:
                failures.append(_Failure(anchor, _source(dataflow, anchor), reason))
                continue
            if block is None or match is None:
                continue
            understood.update(block.nodes)
            replace(model.graph, block, match.proposal, match.formulation)
            self._tell(report, block, match)
            changed = True
        for failure in _one_per_block([failure for failure in failures if failure.anchor not in understood]):
            self._tell_failure(report, dataflow, failure)
        for found in resemblances(dataflow, list(model.graph), understood):
            report.note(self.name, found.node, f"left as ordinary operators: {found.reason}")
            report.unraised.append(found)
        return changed

    def _tell_failure(self, report: Report, dataflow: DataFlow, failure: _Failure) -> None:
        name, anchor = node_name(failure.anchor), failure.anchor
        tell = report.note if failure.reason.resembles else report.warn
        tell(self.name, name, f"left as ordinary operators: {failure.reason}")
        k = 1 if anchor.op_type == "ArgMax" else dataflow.scalar(anchor.inputs[1])
        experts = None if failure.source is None else width(failure.source)
        report.unraised.append(Unraised(name, str(failure.reason), experts, None if k is None else int(k)))

    def _tell(self, report: Report, block: Block, match: Match) -> None:
        if match.undefined:
            trials = ", ".join(f"'{trial}'" for trial in match.undefined)
            why = next(iter(match.undefined.values()))
            report.note(
                self.name, block.name, f"the original fails on trials {trials} ({why}); the raised block does not"
            )


@dataclasses.dataclass(frozen=True)
class _Failure:
    """A selection around which nothing was understood, and what it selects by: the router's logits or scores."""

    anchor: ir.Node
    source: ir.Value | None
    reason: NotUnderstoodError


def _source(dataflow: DataFlow, anchor: ir.Node) -> ir.Value | None:
    return next(iter(find_logits(dataflow, anchor)), anchor.inputs[0])


def _one_per_block(failures: list[_Failure]) -> list[_Failure]:
    """The nearest miss of each block: routers that select several times (groups, then experts) fail several times."""
    nearest: dict[ir.Value | None, _Failure] = {}
    for failure in failures:
        known = nearest.setdefault(failure.source, failure)
        if failure.reason.difference < known.reason.difference:
            nearest[failure.source] = failure
    return list(nearest.values())


def _understand(dataflow: DataFlow, anchor: ir.Node, known: Known) -> tuple[Block | None, Match | None]:
    """The deepest candidate around ``anchor`` that is understood; (None, None) if it does not select experts at all.

    Raises NotUnderstoodError with the nearest miss, the deepest candidate's if all are equally far, if there are some
    but none is understood.
    """
    reasons: list[NotUnderstoodError] = []
    for logits in find_logits(dataflow, anchor):
        for block in itertools.islice(candidate_blocks(dataflow, anchor, logits), MOST_CANDIDATES):
            try:
                return block, _match_block(block, known)
            except NotUnderstoodError as reason:
                reasons.append(reason)
            if reasons[-1].undecided:
                break  # what cannot be seen in a block is in those around it, too
        if any(reason.is_mixture for reason in reasons):
            break  # what is not understood are the experts; from scores on instead of logits they are the same
    if reasons:
        raise min(reasons, key=lambda reason: reason.difference)
    _report_no_candidate(dataflow, anchor)
    return None, None


def _report_no_candidate(dataflow: DataFlow, anchor: ir.Node) -> None:
    """Raise NotUnderstoodError if what has no candidate around it does choose among the outputs of a projection.

    A selection that nothing is multiplied after (sampling the next token) is not worth a word.
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


def _match_block(block: Block, known: Known) -> Match:
    """What a block is understood as. Raises NotUnderstoodError, whatever stumbles over it."""
    borders = block.x, block.logits, block.y, block.start
    if borders in known.refused:  # routers that select in groups first lead to a block several times
        raise known.refused[borders]
    try:
        structure = structure_of(block)
        match = _match_isomorphic(block, structure, known) or _search_block(block)
    except NotUnderstoodError as error:
        reason = error
    except MemoryError:
        reason = NotUnderstoodError("there is not enough memory to check what it computes")
    except Exception as error:  # a graph may hold anything; what stumbles over it has not understood it
        reason = NotUnderstoodError(f"it cannot be evaluated apart ({one_line(error)})")
    else:
        if structure is not None:
            known.understood.setdefault(structure.key, (structure, match))
        return match
    known.refused[borders] = reason
    raise reason


def _match_isomorphic(block: Block, structure: Structure | None, known: Known) -> Match | None:
    """What an isomorphic block was understood as, if this one agrees with it too."""
    if structure is None or structure.key not in known.understood:
        return None
    earlier, match = known.understood[structure.key]
    proposal = transfer(match.proposal, earlier, structure, block.dataflow)
    if proposal is None:
        return None
    verdict = check_proposal(block, proposal, isomorphic_agreed=True)
    return dataclasses.replace(match, proposal=proposal, difference=verdict.difference) if verdict.agrees else None


def _search_block(block: Block) -> Match:
    routings = propose_routings(block)
    if not routings:
        raise NotUnderstoodError("no known router makes the weights that this one makes")
    try:
        return _find_match(block, routings, *_read_experts(block, routings[0]))
    except NotUnderstoodError as reason:
        if reason.undecided:
            raise
        read = reason
    except (EvaluationError, IndexError, ValueError) as error:  # shapes that only look as if they fit
        read = NotUnderstoodError(f"it cannot be evaluated apart ({one_line(error)})")
    try:
        arrangement, formulation, likely = probe_experts(block, routings)
        return _find_match(block, likely, [arrangement], formulation)
    except NotUnderstoodError as reason:
        raise _both(routings[0], read, reason) from None


def _both(routing: Routing, read: NotUnderstoodError, probed: NotUnderstoodError) -> NotUnderstoodError:
    """What is known of a block that neither reading nor probing understands."""
    if read.difference != probed.difference:
        return min(read, probed, key=lambda reason: reason.difference)
    found = f"its router chooses {routing.spec.k} experts by {routing.spec.score}, but"
    reason = f"{found} {read}{'' if str(read) == str(probed) else f'; {probed}'}"
    return NotUnderstoodError(reason, read.difference, is_mixture=probed.is_mixture)


def _read_experts(block: Block, routing: Routing) -> tuple[list[Arrangement], str]:
    """What may be the experts' weights by the operators that read them, and the formulation: plain spellings need no
    more, and nothing has to be computed. Raises NotUnderstoodError for all others."""
    mlps = find_mlps(block)
    check_structure(mlps, block.E)
    mlps = in_expert_order(block, mlps, routing)
    formulation = next((name for name, matches in FORMULATIONS.items() if matches(block, mlps)), None)
    if formulation is None:
        raise NotUnderstoodError("its experts follow no known formulation")
    return list(arrangements(block.dataflow, mlps, block.E, block.d)), formulation


def _find_match(block: Block, routings: list[Routing], plain: list[Arrangement], formulation: str) -> Match:
    scaled = [with_factor(arrangement, factor) for factor in expert_vectors(block) for arrangement in plain]
    return dataclasses.replace(find_match(block, routings, plain + scaled), formulation=formulation)
