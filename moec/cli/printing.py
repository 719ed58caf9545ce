"""Output of the commands of :mod:`moec.cli.main`: results as tables or JSON on standard output; on stderr remarks, and
the current step if that is a terminal."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moec.common.progress import Progress, silent

if TYPE_CHECKING:
    from rich.console import RenderableType

_PIPE_WIDTH = 200
"""Columns of tables that go into a file or a pipe."""


def report_compilation(path: Path, verbose: bool) -> None:
    """Show an artifact's warnings, or all its remarks; the losses of rounding weights; and a summary. The ``verbose``
    report also has the losses of rounding activations, layer by layer; the summary has their mean."""
    from moec.inspect import tables
    from moec.runtime.artifact import open_artifact

    manifest = open_artifact(path, check_weights=False).manifest
    print_remarks(remark for remark in manifest.remarks if verbose or remark["severity"] == "warning")
    losses = [loss for loss in manifest.losses if verbose or loss["weight_error"]]
    if losses:
        print_result(losses, False, [tables.losses_table(losses)])
    print(tables.summary(manifest, str(path)))


def print_remarks(remarks: Iterable[Mapping[str, Any]]) -> None:
    """Print one line on stderr for each remark."""
    for remark in remarks:
        print("{severity}: {pass_name}: {subject}: {message}".format_map(remark), file=sys.stderr)


def print_result(data: Any, as_json: bool, renderables: Iterable[RenderableType]) -> None:
    """Print ``data`` as JSON, or else ``renderables``."""
    if as_json:
        print(json.dumps(data, indent=1))
        return
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    for renderable in renderables:
        console.print(renderable)


@contextlib.contextmanager
def shown_progress(*, times: bool = False) -> Iterator[Progress]:
    """Context that shows the current step on a terminal, and nothing in a pipe. ``times``: print one line on stderr at
    the end for each step, with its time."""
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
    """Times of the steps that were reported."""

    def __init__(self) -> None:
        self._begun: list[tuple[str, float]] = []

    def begin(self, step: str) -> None:
        """Begin ``step``, or continue it: text after a colon or a comma says how far it is."""
        name = re.split("[:,]", step, maxsplit=1)[0]
        if not self._begun or self._begun[-1][0] != name:
            self._begun.append((name, time.perf_counter()))

    def print(self) -> None:
        ends = [start for _, start in self._begun[1:]] + [time.perf_counter()]
        for (name, start), end in zip(self._begun, ends, strict=True):
            print(f"time: {name}: {end - start:.2f} s", file=sys.stderr)
