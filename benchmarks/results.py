"""Results: a JSON file that is complete after every cell, and a table."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any


class Results:
    """Cells by layer, format and tokens. The file is replaced as a whole, so that an interruption leaves a valid
    one."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._cells: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._cells)

    def missing(self, layer: str, form: str, sizes: Sequence[Any]) -> list[Any]:
        """List the numbers of tokens, or other names of cells, that were not measured yet."""
        done = {cell["tokens"] for cell in self._cells if (cell["layer"], cell["format"]) == (layer, form)}
        return [tokens for tokens in sizes if tokens not in done]

    def add(self, layer: str, form: str, tokens: Any, figures: dict[str, Any]) -> None:
        self._cells.append({"layer": layer, "format": form, "tokens": tokens, **figures})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._path.with_suffix(".part")
        unfinished.write_text(json.dumps(self._cells, indent=1) + "\n")
        os.replace(unfinished, self._path)


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows with the same keys as a table in Markdown."""
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + " --- |" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
