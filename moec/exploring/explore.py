"""``moec.explore``: write a report about artifacts."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from moec.common.errors import MoecError
from moec.common.replacing import check_replaceable
from moec.common.seals import foreign_file
from moec.exploring.document import document
from moec.exploring.page import write_page
from moec.exploring.subject import Subject
from moec.tools.tracing.file import read_trace

_PathLike = str | os.PathLike[str]


def explore(
    artifacts: _PathLike | Sequence[_PathLike],
    output: _PathLike,
    *,
    profile: _PathLike | None = None,
    bench: _PathLike | None = None,
    simulation: _PathLike | None = None,
    trace: _PathLike | None = None,
) -> None:
    """Write one file of HTML that shows artifacts side by side, in any browser and without a network.

    ``profile``: a ``.moeprof`` file of the same model. ``bench``: JSON that ``moec bench --json`` printed for the first
    artifact. ``simulation``: JSON that ``moec simulate --json`` printed for it. ``trace``: a file that ``moec bench
    --trace`` wrote for it. Raises MoecError for files that cannot
    be read, and where ``output`` exists and moec did not write it.
    """
    paths = [pathlib.Path(path) for path in ([artifacts] if isinstance(artifacts, (str, os.PathLike)) else artifacts)]
    if not paths:
        raise MoecError("give at least one artifact")
    check_replaceable(output, foreign_file)
    measured = _printed(bench, "bench", dict)
    simulated = _printed(simulation, "simulate", list)
    first = dict(bench=measured, simulation=simulated, trace=None if trace is None else read_trace(trace))
    subjects = [
        Subject.open(path, profile=_path(profile), may_measure=True, **({} if at else first))
        for at, path in enumerate(paths)
    ]
    write_page(document(subjects), pathlib.Path(output))


def _path(path: _PathLike | None) -> pathlib.Path | None:
    return None if path is None else pathlib.Path(path)


def _printed(path: _PathLike | None, command: str, kind: type) -> Any:
    """Read the JSON that a command printed. Returns None without a path."""
    if path is None:
        return None
    expected = f"expected what 'moec {command} --json' printed"
    try:
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise MoecError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise MoecError(f"{path}: is not JSON; {expected}") from error
    if not isinstance(content, kind):
        raise MoecError(f"{path}: is JSON of type {type(content).__name__}; {expected}")
    return content
