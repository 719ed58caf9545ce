"""What the commands of :mod:`moec.cli` print: results as tables or JSON on standard output; on stderr remarks, and on a
terminal the step that a command is at."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
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
def shown_progress(*, times: bool = False) -> Iterator[Progress]:
    """Shows the current step on a terminal; says nothing in a pipe. ``times``: at the end, one line on stderr for each
    step, of how long it took."""
    steps = _StepTimes()
    with contextlib.ExitStack() as stack:
        show: Progress = silent
        if sys.stderr.isatty():
            from rich.console import Console

            show = stack.enter_context(Console(stderr=True).status("starting")).update
        yield lambda step: (steps.begin(step), show(step))[1]
    if times:
        steps.print()


class _StepTimes:
    """How long the steps took that a progress was told of."""

    def __init__(self) -> None:
        self._begun: list[tuple[str, float]] = []

    def begin(self, step: str) -> None:
        """``step`` begins, or goes on: what stands behind a colon or a comma says how far it is."""
        name = re.split("[:,]", step, maxsplit=1)[0]
        if not self._begun or self._begun[-1][0] != name:
            self._begun.append((name, time.perf_counter()))

    def print(self) -> None:
        ends = [start for _, start in self._begun[1:]] + [time.perf_counter()]
        for (name, start), end in zip(self._begun, ends, strict=True):
            print(f"time: {name}: {end - start:.2f} s", file=sys.stderr)
