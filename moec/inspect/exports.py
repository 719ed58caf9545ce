"""The answer of ``moec export``: how the parts of a model were written."""

from __future__ import annotations

import collections
import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from moec.exporting.driver import Export


def as_data(result: Export) -> dict[str, Any]:
    """Describe an export as plain data."""
    parts = [dataclasses.asdict(part) for part in result.parts]
    companions = [str(path) for path in result.companions]
    return {"path": str(result.path), "companions": companions, "form": result.form, "parts": parts}


def tables(result: Export) -> list[RenderableType]:
    """Write one line for the output, with the number of parts of each kind, and one for each part that stayed a
    graph."""
    from rich.text import Text

    counts = collections.Counter(part.written_as for part in result.parts if part.written_as)
    written = ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "no fused operator"
    lines = [f"{result.path}: for {result.form}, {written}"]
    lines += [f"  its weights are beside it, in {path.name}" for path in result.companions]
    lines += [f"  {part.name}: stays a graph of standard operators: {part.reason}" for part in result.unwritten]
    return [Text(line) for line in lines]
