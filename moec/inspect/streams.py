"""Output of ``moec inspect`` for a model whose weights are larger than the memory that they take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from moec.common.tables import table

_MIB = 1 << 20
_FIRST_SHOWN = 8


def streaming_tables(plan: dict[str, Any]) -> Iterator[RenderableType]:
    """Show the result of :func:`moec.exploring.streaming.streaming`."""
    names = [layer["name"] for layer in plan["layers"]]
    first = ", ".join(f"{names[layer]}:{expert}" for layer, expert in plan["order"][:_FIRST_SHOWN])
    why = "by their measured shares" if plan["measured_shares"] else "as they are numbered"
    rows = [
        (
            "memory for weights",
            f"{plan['resident'] / _MIB:.1f}",
            f"at least {plan['least'] / _MIB:.1f} for one token",
        ),
        ("pinned", f"{plan['pinned'] / _MIB:.1f}", "all other weights"),
    ]
    if names:
        rows.append(("experts", f"{plan['experts'] / _MIB:.1f}", f"of {len(names)} layers, which stream"))
        rows.append(("room for experts", f"{plan['room'] / _MIB:.1f}", f"read first, {why}: {first}, ..."))
    if plan["tables"]:
        of_tables = sum(entry["bytes"] for entry in plan["tables"])
        rows.append(("tables on disk", f"{of_tables / _MIB:.1f}", f"{len(plan['tables'])}, of which rows are read"))
    if plan["replaceable"]:
        choice = f"experts in memory take others' places in {plan['replaceable']} layers, if loaded so"
        rows.append(("--prefer-resident", "", f"{choice}: results then depend on what ran before"))
    yield table("Streamed weights", ("", "MiB", ""), rows)
    speed = plan["speed"]
    if speed is None:
        return
    memory = f"{speed['memory_bytes'] / _MIB:.0f} MiB from memory at {speed['memory_bandwidth'] / 1e9:.1f} GB/s"
    disk = f"{speed['disk_bytes'] / _MIB:.0f} MiB from disk at {speed['disk_bandwidth'] / 1e9:.2f} GB/s"
    yield Text(
        f"predicted: {speed['tokens_per_second']:.3g} tokens/s one by one, with {speed['there']:.0%} of the chosen "
        f"experts in memory: {memory} and {disk}, as measured now"
    )
