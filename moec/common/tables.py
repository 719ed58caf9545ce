"""Tables as all commands print them."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text


def table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Make a table. Title and cells are plain text, not markup."""
    result = Table(title=Text(title, style="table.title"), title_justify="left", box=box.SIMPLE_HEAD)
    for heading in headings:
        result.add_column(heading, overflow="fold")
    for row in rows:
        result.add_row(*(Text(cell) for cell in row))
    return result
