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
from moec.exploring.subject import subject


def explore(
    artifacts: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    profile: str | os.PathLike[str] | None = None,
    bench: str | os.PathLike[str] | None = None,
) -> None:
    """Write one file of HTML that shows artifacts side by side, in any browser and without a network.

    ``profile``: a ``.moeprof`` file of the same model. ``bench``: JSON that ``moec bench --json`` printed for the first
    artifact. Raises MoecError for files that cannot be read, and where ``output`` exists and moec did not write it.
    """
    paths = [artifacts] if isinstance(artifacts, (str, os.PathLike)) else list(artifacts)
    if not paths:
        raise MoecError("give at least one artifact")
    check_replaceable(output, foreign_file)
    measured = None if bench is None else _read_bench(pathlib.Path(bench))
    subjects = [
        subject(
            pathlib.Path(path),
            profile=None if profile is None else pathlib.Path(profile),
            bench=measured if place == 0 else None,
            may_measure=True,
        )
        for place, path in enumerate(paths)
    ]
    write_page(document(subjects), pathlib.Path(output))


def _read_bench(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MoecError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise MoecError(f"{path}: is not JSON; expected what 'moec bench --json' printed") from error
    if not isinstance(content, dict):
        raise MoecError(f"{path}: holds a {type(content).__name__}; expected what 'moec bench --json' printed")
    return content
