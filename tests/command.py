"""The command line, by ``moec(...)``: in this process, because a process for each command would take most of the time.

Tests that depend on the process start a new one (``START``)."""

from __future__ import annotations

import contextlib
import functools
import io
import signal
import subprocess
import sys
from unittest import mock

import typer

START = [sys.executable, "-c", "from moec.__main__ import main; main()"]
"""Command line of a new process, for tests of signals, closed outputs and the time until help is printed."""


_made_once = functools.cache(typer.main.get_command)
"""typer's parser of a command line, which it makes anew, in 20 ms, for each."""


def hear_interrupts() -> None:
    """End by SIGINT, which background jobs of a shell ignore. ``preexec_fn`` of processes that are interrupted."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def moec(*arguments: object, input: str = "") -> subprocess.CompletedProcess[str]:
    """Run ``moec`` with these arguments and ``input``. Returns its output and exit code."""
    from moec.cli.main import answer

    words = ["moec", *map(str, arguments)]
    printed, said = io.StringIO(), io.StringIO()
    stdin = io.TextIOWrapper(io.BytesIO(input.encode()), encoding="utf-8")
    parser = mock.patch.object(typer.main, "get_command", _made_once)
    streams = contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said)
    with mock.patch.multiple(sys, argv=words, stdin=stdin), parser, streams[0], streams[1]:
        code = answer()
    return subprocess.CompletedProcess(words[1:], code, printed.getvalue(), said.getvalue())
