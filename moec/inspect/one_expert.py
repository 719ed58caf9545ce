"""History of one expert, by its first id, which passes keep in metadata (:mod:`moec.ir.origins`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moec.common.errors import MoecError


def find_expert(blocks: Sequence[dict[str, Any]], text: str) -> dict[str, Any]:
    """Look up the expert ``LAYER:EXPERT`` in the blocks of ``describe()``: the number of a block, or its name, and the
    number that the expert had at first.

    Returns ``layer``, ``expert``; ``number``: its present number, None if it was removed; ``with``: the first ids of
    the experts that were merged with it; ``why``: the pass that removed or merged it, with its reason; ``hidden_units``
    and ``formats``, by weight, where it has any. Raises MoecError for an unknown expert.
    """
    layer, colon, number = text.rpartition(":")
    if not colon or not (number.isascii() and number.isdecimal()):
        raise MoecError(f"--expert {text!r}: expected LAYER:EXPERT, such as 3:17")
    block, expert = _block(blocks, layer), int(number)
    origins = block.get("origins") or {"experts": [[expert] for expert in range(_count(block))], "removed": {}}
    place = next((place for place, group in enumerate(origins["experts"]) if expert in group), None)
    reasons = {int(first): why for name in ("removed", "joined") for first, why in origins.get(name, {}).items()}
    if place is None and expert not in reasons:
        last = max([*reasons, *(first for group in origins["experts"] for first in group)], default=-1)
        raise MoecError(f"--expert {text!r}: layer {block['name']} has no expert {expert}; it had 0 to {last}")
    group = [] if place is None else origins["experts"][place]
    return {
        "layer": block["name"],
        "expert": expert,
        "number": place,
        "with": [first for first in group if first != expert],
        "why": reasons.get(expert),
        **_stored(block, place),
    }


def became(origin: dict[str, Any]) -> str:
    """Write one line for people about the result of :func:`find_expert`."""
    start, why = f"layer {origin['layer']}: expert {origin['expert']}", origin["why"]
    if origin["number"] is None:
        return f"{start} is gone ({why})"
    others = f", one with {', '.join(map(str, origin['with']))}" if origin["with"] else ""
    units = "" if origin["hidden_units"] is None else f"; {origin['hidden_units']} hidden units"
    formats = ", ".join(f"{name} {form}" for name, form in origin["formats"].items())
    return (
        f"{start} is number {origin['number']}{others}{f' ({why})' if why else ''}{units}{formats and f'; {formats}'}"
    )


def _block(blocks: Sequence[dict[str, Any]], layer: str) -> dict[str, Any]:
    names = [block["name"] for block in blocks]
    if layer.isascii() and layer.isdecimal() and int(layer) < len(blocks):
        return blocks[int(layer)]
    if layer in names:
        return blocks[names.index(layer)]
    listed = ", ".join(f"{number} ({name})" for number, name in enumerate(names)) or "none"
    raise MoecError(f"--expert: no layer {layer!r}; there are {listed}")


def _count(block: dict[str, Any]) -> int:
    return (block["num_experts"] or 0) + (block["experts"] or {}).get("identity_experts", 0)


def _stored(block: dict[str, Any], place: int | None) -> dict[str, Any]:
    """Look up sizes and formats of the expert at a place; empty for one that returns its input."""
    if place is None or place >= (block["num_experts"] or 0):
        return {"hidden_units": None, "formats": {}}
    sizes = (block["experts"] or {}).get("hidden_sizes")
    return {
        "hidden_units": sizes[place] if sizes else block["intermediate_size"],
        "formats": {name: formats[place] for name, formats in block["formats"].items()},
    }
