"""``moec explore``: write a page that shows artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def explore(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ART...", help="Artifacts, shown side by side.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="HTML", help="The page to write.")],
    profile: Annotated[
        Path | None, typer.Option(help="Show what this profile, made by moec profile, measured.")
    ] = None,
    bench: Annotated[
        Path | None, typer.Option(metavar="JSON", help="Show what moec bench --json printed for the first artifact.")
    ] = None,
    simulation: Annotated[
        Path | None, typer.Option(metavar="JSON", help="Show what moec simulate --json printed for the first artifact.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="JSON", help="Show what moec bench --trace wrote for the first artifact.")
    ] = None,
) -> None:
    """Write one HTML file that shows what was compiled and why: it opens in any browser, without a network."""
    from moec.exploring.explore import explore

    explore(artifacts, output, profile=profile, bench=bench, simulation=simulation, trace=trace)
