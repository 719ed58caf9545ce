"""The pass that finds MoE blocks and replaces each by one Route and one Experts operator."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir
from moec.passes.base import Exactness, Report
from moec.passes.raising import batched, dense, loop
from moec.passes.raising.block import Block, cut_blocks, find_logits
from moec.passes.raising.chains import find_chains
from moec.passes.raising.facts import Facts
from moec.passes.raising.rewrite import replace
from moec.passes.raising.router import propose_routings
from moec.passes.raising.search import Match, NotUnderstood, find_match

ANCHORS = ("TopK", "ArgMax")
FORMULATIONS = (batched.propose, loop.propose, dense.propose)


@dataclasses.dataclass(frozen=True)
class RaiseMoe:
    """Replace every recognised MoE block by ``moec.Route`` and ``moec.Experts``."""

    name: ClassVar[str] = "raise-moe"
    exactness: ClassVar[Exactness] = "reassociating"

    def apply(self, model: ir.Model, report: Report) -> bool:
        changed = False
        done: set[ir.Node] = set()
        while (anchor := _next_anchor(model.graph, done)) is not None:
            done.add(anchor)
            facts = Facts(model.graph)
            changed |= self._raise(model.graph, facts, anchor, done, report)
        return changed

    def _raise(self, graph: ir.Graph, facts: Facts, anchor: ir.Node, done: set[ir.Node], report: Report) -> bool:
        reason = None
        for logits in find_logits(facts, anchor):
            block = next(cut_blocks(facts, anchor, logits), None)
            if block is None:
                continue
            try:
                match = match_block(block)
            except NotUnderstood as error:
                reason = reason or str(error)
                continue
            done.update(block.nodes)
            replace(graph, block, match.proposal)
            return True
        if reason is not None:
            report.warn(self.name, anchor.name or "", reason)
        return False


def match_block(block: Block) -> Match:
    routings = propose_routings(block)
    if not routings:
        raise NotUnderstood("its router is not understood")
    chains = find_chains(block)
    for propose in FORMULATIONS:
        proposed = propose(block, chains)
        if proposed is not None:
            return find_match(block, routings, list(proposed))
    raise NotUnderstood("its experts follow no known formulation")


def _next_anchor(graph: ir.Graph, done: set[ir.Node]) -> ir.Node | None:
    return next((n for n in graph if n.op_type in ANCHORS and not n.domain and n not in done), None)
