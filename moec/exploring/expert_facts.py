"""Facts about each expert of a MoE block, by the ids that the experts had at first: their one source for tables, the
history of an expert and the explorer."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from moec.ir.blocks import elements_of
from moec.ir.weights.format import WeightFormat


def expert_facts(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Describe all experts that a block of ``describe()`` has, or had at first, as plain data.

    ``expert``: its first id; ``number``: its present number, None where it was removed; ``with``: first ids of the
    experts that were merged with it; ``why``: the pass that removed or merged it, with its reason. ``hidden_units`` is
    None, and ``formats`` by weight empty, for one that is gone or returns its input. ``bits``: of its weights on
    average, without scales, and ``bytes`` with these, as the model stores them; None where a size is not known.
    """
    count = (block["num_experts"] or 0) + (block["experts"] or {}).get("identity_experts", 0)
    origins = block.get("origins") or {"experts": [[expert] for expert in range(count)], "removed": {}}
    reasons = {int(first): why for name in ("removed", "joined") for first, why in origins.get(name, {}).items()}
    places = {first: place for place, group in enumerate(origins["experts"]) for first in group}
    elements = {name: elements_of(block, name) for name in block["formats"]}
    inputs = {name: _inputs(block, name) for name in block["formats"]}
    return [
        {
            "expert": first,
            "number": places.get(first),
            "with": [other for other in origins["experts"][places[first]] if other != first] if first in places else [],
            "why": reasons.get(first),
            **_stored(block, places.get(first), elements, inputs),
        }
        for first in sorted(places.keys() | reasons.keys())
    ]


def _stored(
    block: Mapping[str, Any], place: int | None, elements: Mapping[str, list[int]], inputs: Mapping[str, list[int]]
) -> dict[str, Any]:
    """Sizes and formats of the expert at a place."""
    if place is None or place >= (block["num_experts"] or 0):
        return {"hidden_units": None, "formats": {}, "bits": None, "bytes": None}
    sizes = (block["experts"] or {}).get("hidden_sizes")
    formats = {name: own[place] for name, own in block["formats"].items()}
    counts = {name: elements[name][place] for name in formats}
    total = sum(counts.values())
    bits = sum(counts[name] * _format(form).elements.bits for name, form in formats.items())
    stored = sum(counts[name] * _format(form).bits_per_weight(inputs[name][place]) for name, form in formats.items())
    return {
        "hidden_units": sizes[place] if sizes else block["intermediate_size"],
        "formats": formats,
        "bits": bits / total if total else None,
        "bytes": round(stored / 8) if total else None,
    }


_format = functools.cache(WeightFormat.parse)


def _inputs(block: Mapping[str, Any], name: str) -> list[int]:
    """Inputs of the matrix ``name`` of each expert; 1 where they are not known."""
    count = len(block["formats"][name])
    for product in block.get("products", ()):
        if product["name"] == name:
            return [product["inputs"] or 1] * count
    sizes = (block["experts"] or {}).get("hidden_sizes")
    if name == "down" and sizes:
        return [size or 1 for size in sizes]
    return [block["intermediate_size" if name == "down" else "hidden_size"] or 1] * count
