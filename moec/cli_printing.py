"""What the commands of :mod:`moec.cli` print: results as tables or JSON on standard output; on stderr remarks, and on a
terminal the step that a command is at."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moec.common.progress import Progress, silent

if TYPE_CHECKING:
    from rich.console import RenderableType

_PIPE_WIDTH = 200
"""Columns of tables that go into a file or a pipe."""


def report_compilation(path: Path, verbose: bool) -> None:
    """An artifact's warnings, or all its remarks; what rounding its weights lost; a summary. The ``verbose`` report
    has what rounding activations moved, layer by layer, of which the summary has the mean."""
    from moec.inspect import tables
    from moec.runtime.artifact import open_artifact

    manifest = open_artifact(path, check_weights=False).manifest
    print_remarks(remark for remark in manifest.remarks if verbose or remark["severity"] == "warning")
    losses = [loss for loss in manifest.losses if verbose or loss["weight_error"]]
    if losses:
        print_result(losses, False, [tables.losses_table(losses)])
    print(tables.summary(manifest, str(path)))


def print_remarks(remarks: Iterable[dict[str, Any]]) -> None:
    """One line on stderr for each."""
    for remark in remarks:
        print("{severity}: {pass_name}: {subject}: {message}".format_map(remark), file=sys.stderr)


def print_result(data: Any, as_json: bool, renderables: Iterable[RenderableType]) -> None:
    """``data`` as JSON, or else ``renderables``."""
    if as_json:
        print(json.dumps(data, indent=1))
        return
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    for renderable in renderables:
        console.print(renderable)


@contextlib.contextmanager
def shown_progress() -> Iterator[Progress]:
    """Shows the current step on a terminal; says nothing in a pipe."""
    if not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield status.update
