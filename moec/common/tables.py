"""Tables as all commands print them."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text


def table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Title and cells are taken as they are, not as markup."""
    made = Table(title=Text(title, style="table.title"), title_justify="left", box=box.SIMPLE_HEAD)
    for heading in headings:
        made.add_column(heading, overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made
