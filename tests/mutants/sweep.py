"""Many mutants, each compiled, run and compared."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Iterable

from ..isolated import Worker
from .judge import FAILURES, Verdict, judge, work
from .mutant import Mutant, make
from .shrink import shrunk

SECONDS, GIGABYTES = 60, 4
_REUSES = 200
"""After so many models a process is replaced: some of them leave memory behind."""


def sweep(
    indices: Iterable[int], seed: int, out: pathlib.Path | None = None, *, with_node_tests: bool = True
) -> tuple[collections.Counter[str], list[str]]:
    """Counts by status, and a line for every failure. ``out``: a folder for a log and for failures, shrunk."""
    counts: collections.Counter[str] = collections.Counter()
    failures: list[str] = []
    worker = Worker(work, SECONDS, GIGABYTES)
    for done, index in enumerate(indices):
        if done % _REUSES == _REUSES - 1:
            worker.close()
        mutant = make(seed, index, with_node_tests)
        verdict = judge(mutant.files, worker)
        counts[verdict.status] += 1
        line = f"{index}\t{verdict.status}\t{mutant.history}\t{verdict.message[:400]}".replace("\n", "\\n")
        if out is not None:
            with open(out / "log.tsv", "a", encoding="utf-8") as log:
                log.write(line + "\n")
        if verdict.status in FAILURES:
            failures.append(line)
            if out is not None:
                _keep(out / f"{seed}-{index}-{verdict.status}", mutant, verdict, worker)
    worker.close()
    return counts, failures


def _keep(folder: pathlib.Path, mutant: Mutant, verdict: Verdict, worker: Worker) -> None:
    folder.mkdir(exist_ok=True)
    for name, data in shrunk(mutant.files, verdict, lambda files: judge(files, worker)).items():
        (folder / name).write_bytes(data)
    about = f"mutant {folder.name}: {mutant.history}\n{verdict.status}: {verdict.message}\n"
    (folder / "about.txt").write_text(about, encoding="utf-8")
