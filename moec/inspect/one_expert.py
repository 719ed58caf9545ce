"""History of one expert, by its first id, which passes keep in metadata (:mod:`moec.ir.origins`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moec.common.errors import MoecError
from moec.exploring.expert_facts import expert_facts


def find_expert(blocks: Sequence[dict[str, Any]], text: str) -> dict[str, Any]:
    """Look up the expert ``LAYER:EXPERT`` in the blocks of ``describe()``: the number of a block, or its name, and the
    number that the expert had at first.

    Returns the name of its ``layer`` with the facts of :func:`moec.exploring.expert_facts.expert_facts`. Raises
    MoecError for an unknown expert.
    """
    layer, colon, number = text.rpartition(":")
    if not colon or not (number.isascii() and number.isdecimal()):
        raise MoecError(f"--expert {text!r}: expected LAYER:EXPERT, such as 3:17")
    block, expert = _block(blocks, layer), int(number)
    facts = {fact["expert"]: fact for fact in expert_facts(block)}
    if expert not in facts:
        last = max(facts, default=-1)
        raise MoecError(f"--expert {text!r}: layer {block['name']} has no expert {expert}; it had 0 to {last}")
    return {"layer": block["name"], **facts[expert]}


def became(origin: dict[str, Any]) -> str:
    """Write one line for people about the result of :func:`find_expert`."""
    start, why = f"layer {origin['layer']}: expert {origin['expert']}", origin["why"]
    if origin["number"] is None:
        return f"{start} is gone ({why})"
    others = f", one with {', '.join(map(str, origin['with']))}" if origin["with"] else ""
    units = "" if origin["hidden_units"] is None else f"; {origin['hidden_units']} hidden units"
    formats = ", ".join(f"{name} {form}" for name, form in origin["formats"].items())
    size = "" if origin["bytes"] is None else f"; {origin['bits']:.3g} bits, {origin['bytes']} bytes"
    history = f"{others}{f' ({why})' if why else ''}"
    return f"{start} is number {origin['number']}{history}{units}{formats and f'; {formats}'}{size}"


def _block(blocks: Sequence[dict[str, Any]], layer: str) -> dict[str, Any]:
    names = [block["name"] for block in blocks]
    if layer.isascii() and layer.isdecimal() and int(layer) < len(blocks):
        return blocks[int(layer)]
    if layer in names:
        return blocks[names.index(layer)]
    listed = ", ".join(f"{number} ({name})" for number, name in enumerate(names)) or "none"
    raise MoecError(f"--expert: no layer {layer!r}; there are {listed}")
