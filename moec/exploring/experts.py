"""Sections ``experts`` and ``pairs``: formats, size, use and error of each expert, and experts selected together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moec import targets
from moec.common.errors import ArtifactError
from moec.exploring.expert_facts import expert_facts
from moec.exploring.expert_use import ExpertUse, uses_of
from moec.exploring.subject import Subject
from moec.ir.weight_operands import weight_inputs
from moec.tools.stream_speed import stream_plan

KEPT, READ = "kept", "read"


def experts(subject: Subject) -> dict[str, Any] | None:
    """Describe all experts, layer by layer, as plain data; None for a model without MoE blocks.

    An entry of ``layers`` is of one MoE block: its ``name``, ``top_k``, the ``tokens`` that the profile saw, the
    ``losses`` of the whole layer by passes, and its ``experts``. These have the facts of
    :func:`moec.exploring.expert_facts.expert_facts` and of :meth:`moec.exploring.expert_use.ExpertUse.of`. ``memory``
    is :data:`KEPT` or :data:`READ` for experts whose weights are read from their file when they are selected; the first
    are in memory when a run begins. ``profile`` names the model and the data of the profile; ``no_profile`` says why
    there is none.
    """
    blocks = subject.description["moe_blocks"]
    if not blocks:
        return None
    types = targets.kind_of(subject.artifact.manifest.target).weight_types(subject.description)
    uses, memory = uses_of(subject), _memory(subject)
    layers = [
        _layer(block, types.get(block["name"]), use, memory.get(block["name"]))
        | {"losses": [loss for loss in subject.description["losses"] if loss["layer"] == block["name"]]}
        for block, use in zip(blocks, uses.layers, strict=True)
    ]
    return {"layers": layers, "profile": uses.profile, "no_profile": uses.reason}


def pairs(subject: Subject) -> list[list[list[int]] | None] | None:
    """Count the tokens that two experts see. A table for each block, None where the profile has no such layer: for each
    of the layer's experts the tokens that it shares with those before it, and its own. Returns None without a
    profile."""
    uses = uses_of(subject) if subject.description["moe_blocks"] else None
    if uses is None or uses.profile is None:
        return None
    tables = [None if use is None else use.pairs for use in uses.layers]
    return [table and [row[: place + 1] for place, row in enumerate(table)] for table in tables]


def _layer(
    block: dict[str, Any], stored_as: str | None, use: ExpertUse | None, memory: Sequence[str] | None
) -> dict[str, Any]:
    if stored_as is not None:  # the target rounded all weights anew
        block = {**block, "formats": {name: [stored_as] * len(own) for name, own in block["formats"].items()}}
    try:
        facts = expert_facts(block)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"MoE block {block['name']}: its experts cannot be read: {error}") from error
    present = {fact["number"] for fact in facts if fact["number"] is not None}
    rows = [
        fact
        | ({} if use is None else use.of(fact, len(facts), len(present)))
        | ({} if memory is None or fact["bytes"] is None else {"memory": memory[fact["number"]]})
        for fact in facts
    ]
    tokens = None if use is None else use.tokens
    return {"name": block["name"], "top_k": block["top_k"], "tokens": tokens, "experts": rows}


def _memory(subject: Subject) -> dict[str, list[str]]:
    """Say of each present expert, by the name of its block, whether it is kept or read. Empty without streaming."""
    artifact, graph = subject.artifact, subject.graph
    resident = artifact.manifest.resident
    if resident is None or graph is None:
        return {}
    plan = stream_plan(artifact)
    kept = set(plan.fitting(resident))
    node_of = {value.name: node.name or "" for node in graph.all_nodes() for value in weight_inputs(node).values()}
    return {
        node_of.get(spec.name, spec.name): [KEPT if (layer, e) in kept else READ for e in range(spec.experts)]
        for layer, spec in enumerate(plan.streamed)
    }
