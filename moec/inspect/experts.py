"""Table rows with the sizes and formats of each expert, and the kernels that multiply by its weights."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

MOST_RANGES = 16
"""Most ranges that are listed. More experts that differ from their neighbours are summarised."""
HEADINGS = ("layer", "hidden units", "gate and up", "down", "arithmetic", "products by")
PRODUCT_HEADINGS = ("layer", "product", "matrices", "formats", "arithmetic", "product by")
ORIGIN_HEADINGS = ("layer", "experts, by the ids that they had")


def expert_rows(blocks: Sequence[dict[str, Any]], kernels: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Make one row for each MoE block whose experts are MLPs, from the result of ``describe()``. Experts that differ
    are listed by ranges of their numbers: ``0-3: 512, 4: 96``."""
    return [
        (
            block["name"],
            by_ranges(_hidden_sizes(block)),
            _stored(block["formats"], ("gate", "up")),
            _stored(block["formats"], ("down",)),
            _arithmetic(block["experts"]),
            _kernels(kernels, block["name"]),
        )
        for block in blocks
        if block["experts"] is not None
    ]


def product_rows(blocks: Sequence[dict[str, Any]], kernels: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Make one row for each product of the experts that are graphs over dispatched rows."""
    return [
        (
            block["name"],
            product["name"],
            f"{product['inputs']} x {product['outputs']}",
            _stored(block["formats"], (product["name"],)),
            _arithmetic(product),
            _kernels(kernels, product["name"]),
        )
        for block in blocks
        for product in block.get("products", ())
    ]


def origin_rows(blocks: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Make one row for each MoE block whose experts have changed: ``1+5 are one; without 7 (drop-dead-experts: its
    logit is -inf)``. Experts are named by their first ids."""
    return [(block["name"], _became(block["origins"])) for block in blocks if block.get("origins")]


def _became(origins: dict[str, Any]) -> str:
    joined = ["+".join(map(str, group)) for group in origins["experts"] if len(group) > 1]
    by_reason: dict[str, list[str]] = {}
    for expert, reason in origins["removed"].items():
        by_reason.setdefault(reason, []).append(str(expert))
    gone = [f"without {', '.join(experts)} ({reason})" for reason, experts in by_reason.items()]
    return "; ".join([*(f"{experts} are one" for experts in joined), *gone])


def by_ranges(values: Sequence[Any]) -> str:
    """Write the value of each expert: one value where all are equal, else a line that is short for any number of
    experts."""
    if not values:
        return "?"
    if len(set(values)) == 1:
        return str(values[0])
    starts = [i for i in range(len(values)) if i == 0 or values[i] != values[i - 1]]
    runs = [
        (_range(first, end - 1), values[first]) for first, end in zip(starts, [*starts[1:], len(values)], strict=True)
    ]
    if len(runs) <= MOST_RANGES:
        return ", ".join(f"{experts}: {value}" for experts, value in runs)
    if isinstance(values[0], int):
        return f"{min(values)} to {max(values)}, mean {statistics.mean(values):.0f} (--json lists them)"
    return "; ".join(
        f"{value}: {', '.join(experts for experts, own in runs if own == value)}" for value in dict.fromkeys(values)
    )


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _hidden_sizes(block: dict[str, Any]) -> Sequence[Any]:
    same = [block["intermediate_size"]] if block["intermediate_size"] is not None else []
    return block["experts"]["hidden_sizes"] or same


def _stored(formats: dict[str, list[str]], names: Iterable[str]) -> str:
    """Write the formats of operands; once where gate and up agree."""
    texts = {name: by_ranges(formats[name]) for name in names if name in formats}
    if len(set(texts.values())) <= 1:
        return next(iter(texts.values()), "?")
    return "\n".join(f"{name} {text}" for name, text in texts.items())


def _arithmetic(spec: dict[str, Any]) -> str:
    group = spec["activation_group"]
    return f"{spec['arithmetic']}, groups of {group}" if group else spec["arithmetic"]


def _kernels(kernels: Sequence[dict[str, Any]], node: str) -> str:
    """List the kernels that multiply for a node. Only kernels of products list the formats of their weights."""
    return "\n".join(
        kernel["name"] for kernel in kernels if node in kernel["nodes"] and "formats" in kernel["attributes"]
    )
