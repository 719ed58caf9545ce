"""The pass that finds MoE blocks and replaces each by Route and Experts, or by a graph over dispatched rows."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import onnx_ir as ir

from moec.common.names import node_name
from moec.passes.framework.base import Exactness, Report, Unraised
from moec.passes.framework.evidence import Attempt, RaisedBlock, cut
from moec.passes.graph.edits import is_op
from moec.passes.raising.block import Block, experts_of
from moec.passes.raising.candidates import SELECTIONS, candidate_blocks, find_logits, selects_for_experts
from moec.passes.raising.dataflow import DataFlow
from moec.passes.raising.failure import NoRouterError, NotUnderstoodError, left_out
from moec.passes.raising.given_choices import ScatteredSelection, choices, scattered
from moec.passes.raising.given_columns import Beside, columns, side_by_side
from moec.passes.raising.given_weights import blocks_weighed_by, given_routing, weighed_blocks
from moec.passes.raising.matching.blocks import MOST_CANDIDATES, KnownBlocks, match_block, understand
from moec.passes.raising.matching.diagnosis import diagnosed
from moec.passes.raising.matching.search import Match, describe
from moec.passes.raising.one_choice import ROUTING, Selected, chosen_flags, chosen_ids, select
from moec.passes.raising.rewrite import replace
from moec.passes.raising.router import RoutingProposal
from moec.passes.raising.unraised import resemblances


@dataclasses.dataclass(frozen=True)
class RaiseMoE:
    """Replace every recognised MoE block by ``moec.Route`` and ``moec.Experts``, or a graph over dispatched rows.

    1. The search starts at a selection (TopK, ArgMax). The block around it is a region of the data flow: logits before
       it, y after it, x before both. Shared experts and residual sums stay outside.
    2. RouteSpecs are tried on sample logits to identify the router, ExpertsSpecs on sample rows for the experts.
    3. A proposal is applied only if it agrees with the original on all trials (see ``raising.check``). A region that
       looks like experts and does not agree is reported and left as it is.
    4. A region that resembles a mixture and is not raised gets a note: scores that weigh all experts or mix their
       matrices, a sum of results of like products that data weighs, a table of experts, a selection among other values
       than columns of logits.
    5. Experts that are no MLPs become ``moec.Dispatch``, a graph over dispatched rows, and ``moec.Combine``
       (:mod:`moec.passes.raising.row_proposal`).
    6. If no known router computes the weights, or nothing selects, the weights themselves take the place of the logits
       (:mod:`moec.passes.raising.given_weights`), with a note, unless others use the experts' results, too. If only
       selected ids have weights, these are spread to all experts (:mod:`moec.passes.raising.given_choices`).
    7. A block that is isomorphic to an earlier one, equal except for its weights, is first tried as the same, on rows
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
        raising = _Raising(self.name, model.graph, DataFlow(model.graph), report)
        failures = [
            failure
            for anchor in [node for node in model.graph if is_op(node, *SELECTIONS)]
            if not selects_for_experts(raising.dataflow, anchor)
            if (failure := raising.around(anchor)) is not None
        ]
        failures = [failure for failure in failures if failure.anchor not in raising.understood]
        left = [failure for failure in _one_per_block(failures) if not raising.behind_selection(failure)]
        raising.given_choices(failures)
        raising.given_columns(failures)
        raising.one_choice(failures)
        for failure in left:
            if failure.anchor not in raising.understood:
                raising.tell_failure(failure)
        for node, region in resemblances(raising.dataflow, list(model.graph), raising.understood):
            why = raising.behind(node.outputs[0], node, region.reason)
            if why is not None:
                report.note(self.name, region.node, f"left as ordinary operators: {why}")
                report.add_unraised(dataclasses.replace(region, reason=why), raising.attempts[node])
        return raising.changed


@dataclasses.dataclass
class _Raising:
    """Progress of raising in one graph. ``understood`` are the nodes of blocks that were raised. ``attempts``: what was
    tried on blocks around a node, besides those around a selection with a known router."""

    pass_name: str
    graph: ir.Graph
    dataflow: DataFlow
    report: Report
    understood: set[ir.Node] = dataclasses.field(default_factory=set)
    known_blocks: KnownBlocks = dataclasses.field(default_factory=KnownBlocks)
    attempts: defaultdict[ir.Node, list[Attempt]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    changed: bool = False

    def around(self, anchor: ir.Node) -> _Failure | None:
        """Raise the block around a selection, or return why there is none."""
        if anchor in self.understood:
            return None
        try:
            block, match = understand(self.dataflow, anchor, self.known_blocks)
        except NotUnderstoodError as reason:
            return _Failure(anchor, _source(self.dataflow, anchor), reason)
        if block is not None and match is not None:
            self._replace(block, match)
        return None

    def behind_selection(self, failure: _Failure) -> bool:
        """Whether the experts of a selection whose router was not understood could be raised by :meth:`behind`."""
        source, reason = failure.source, failure.reason
        if source is None:
            return False
        refused = experts_of(source) if reason.is_mixture else None
        return self.behind(source, failure.anchor, str(reason), refused) is None

    def behind(self, source: ir.Value, anchor: ir.Node, reason: str, refused: int | None = None) -> str | None:
        """Raise experts that are weighed by values computed from ``source``, in whatever way. Returns None if that was
        possible, else the reason. ``reason``: why the block was not raised with its router; ``refused``: a number of
        experts that is known not to be understood."""
        blocks = (
            block
            for block in weighed_blocks(self.dataflow, source, anchor, self.known_blocks.tried)
            if refused != block.E
        )
        return self._first_of(blocks, source, reason, [anchor])

    def _first_of(
        self,
        blocks: Iterator[Block],
        source: ir.Value,
        reason: str,
        about: Iterable[ir.Node],
        routing: RoutingProposal | None = None,
    ) -> str | None:
        """Raise the first block that is understood; see :meth:`behind`. ``about``: nodes that attempts are kept for."""
        why = reason
        for block in blocks:
            try:
                match = match_block(block, self.known_blocks, routing or given_routing(block))
            except NotUnderstoodError as error:
                why = f"{reason}; {diagnosed(block, [], error)}"
                for node in about:
                    self.attempts[node] += error.attempts
                continue
            self._replace(block, match)
            self.understood.update(self.dataflow.between([block.logits], lambda value: value is source))
            self.report.note(self.pass_name, block.name, f"its router stays as ordinary operators: {reason}")
            return None
        return why

    def given_choices(self, failures: Sequence[_Failure]) -> None:
        """Raise experts whose weights are still gathered, with ids and weights from any source. If a known router
        agreed at first, the block failed for another reason and is left out."""
        refused = {failure.anchor for failure in failures if not isinstance(failure.reason, NoRouterError)}
        for choice in list(choices(self.dataflow, self.graph)):
            selections = choice.selections(self.dataflow)
            if self.understood.issuperset(choice.readers) or not refused.isdisjoint(selections):
                continue
            rewrite = scattered(self.graph, self.dataflow, choice)
            if rewrite is None:
                continue
            self.dataflow = DataFlow(self.graph)
            reason = "its experts are not chosen and weighed by scores of theirs alone"
            blocks = blocks_weighed_by(self.dataflow, rewrite.mixture, rewrite.selection, self.known_blocks.tried)
            self._keep_or_undo(rewrite, self._first_of(blocks, rewrite.mixture, reason, selections) is None, selections)

    def given_columns(self, failures: Sequence[_Failure]) -> None:
        """Raise experts that are each weighed by a column of their own, from any source, unless experts of a selection
        among the makers of these columns were not understood."""
        refused = {failure.anchor for failure in failures if failure.reason.is_mixture}
        for weighing in list(columns(self.dataflow, self.graph)):
            makers = weighing.makers(self.dataflow)
            if any(node in self.understood for node, _ in weighing.uses) or not refused.isdisjoint(makers):
                continue
            rewrite = side_by_side(self.graph, self.dataflow, weighing)
            self.dataflow = DataFlow(self.graph)
            reason = "each of its experts is weighed by a value of its own"
            blocks = blocks_weighed_by(self.dataflow, rewrite.mixture, rewrite.apart, self.known_blocks.tried)
            self._keep_or_undo(rewrite, self._first_of(blocks, rewrite.mixture, reason, makers) is None, makers)

    def one_choice(self, failures: Sequence[_Failure]) -> None:
        """Raise experts of which a token is given to one, without a weight, whatever selects it, unless experts of a
        selection among the makers were not understood, or a decision was not seen."""
        reasons = ((failure.anchor, failure.reason) for failure in failures)
        refused = {anchor for anchor, reason in reasons if reason.is_mixture or reason.undecided}
        for find in (chosen_ids, chosen_flags):
            for choice in list(find(self.dataflow, self.graph)):
                makers = choice.makers(self.dataflow)
                if any(node in self.understood for node, _ in choice.uses) or not refused.isdisjoint(makers):
                    continue
                rewrite = select(self.graph, self.dataflow, choice)
                self.dataflow = DataFlow(self.graph)
                regions = candidate_blocks(self.dataflow, rewrite.selection, rewrite.scores, self.known_blocks.tried)
                blocks = itertools.islice(regions, MOST_CANDIDATES)
                reason = "it gives a token to one expert, whose result has no weight"
                self._keep_or_undo(
                    rewrite, self._first_of(blocks, rewrite.scores, reason, makers, ROUTING) is None, makers
                )

    def _keep_or_undo(
        self, rewrite: ScatteredSelection | Beside | Selected, is_raised: bool, makers: Iterable[ir.Node]
    ) -> None:
        """Keep the rewrite of ``makers`` if the block after it is raised, else undo it."""
        if is_raised:
            self.understood.update(makers)
        else:
            rewrite.undo(self.graph)
            self.dataflow = DataFlow(self.graph)

    def _replace(self, block: Block, match: Match) -> None:
        self.understood.update(block.nodes)
        replace(self.graph, block, match.proposal, match.formulation)
        self.changed = True
        proposal = cut(describe(match.proposal))
        raised = RaisedBlock(block.name, match.reading, proposal, match.evidence, match.isomorphic_to)
        self.report.raised.append(raised)
        if absent := match.proposal.absent:
            traced = match.formulation != "batched"
            tell = self.report.warn if traced else self.report.note
            tell(self.pass_name, block.name, left_out(absent, block.E, traced=traced))
        if match.proposal.routing.places is not None:
            kept = "no known router gives tokens the places that this one gives them"
            self.report.note(self.pass_name, block.name, f"its router stays as ordinary operators: {kept}")
        for budget in block.weighing.exceeded if block.weighing is not None else ():
            self.report.note(self.pass_name, block.name, budget.remark(["the weights of its experts"]))
        for assumption in match.assumed:
            self.report.note(self.pass_name, block.name, f"assumed: {assumption}")
        if match.undefined:
            trials = ", ".join(f"'{trial}'" for trial in match.undefined)
            why = next(iter(match.undefined.values()))
            self.report.note(
                self.pass_name, block.name, f"the original fails on trials {trials} ({why}); the raised block does not"
            )

    def tell_failure(self, failure: _Failure) -> None:
        name, anchor = node_name(failure.anchor), failure.anchor
        tell = self.report.note if failure.reason.resembles else self.report.warn
        tell(self.pass_name, name, f"left as ordinary operators: {failure.reason}")
        k = 1 if anchor.op_type == "ArgMax" else self.dataflow.scalar(anchor.inputs[1])
        experts = None if failure.source is None else experts_of(failure.source)
        region = Unraised(name, str(failure.reason), experts, None if k is None else int(k))
        self.report.add_unraised(region, [*failure.reason.attempts, *self.attempts[anchor]])


@dataclasses.dataclass(frozen=True)
class _Failure:
    """A selection around which no block was understood, and the router's logits or scores that it selects by."""

    anchor: ir.Node
    source: ir.Value | None
    reason: NotUnderstoodError


def _source(dataflow: DataFlow, anchor: ir.Node) -> ir.Value | None:
    return next(iter(find_logits(dataflow, anchor)), anchor.inputs[0])


def _one_per_block(failures: list[_Failure]) -> list[_Failure]:
    """The nearest miss of each block: routers that select several times (groups, then experts) fail several times."""
    nearest: dict[ir.Value | None, _Failure] = {}
    for failure in failures:
        nearest_miss = nearest.setdefault(failure.source, failure)
        if failure.reason.difference < nearest_miss.reason.difference:
            nearest[failure.source] = failure
    return list(nearest.values())
