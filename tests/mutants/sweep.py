"""Many mutants, each compiled, run and compared: ``python -m tests.mutants.sweep --count 5000 --seed 1 --out DIR``.

Every failure is shrunk and written to DIR: the files of the model, and a text with the seed, the mutations and what was
seen. ``--only N`` does one mutant again.
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import subprocess
import sys
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from .judge import Verdict
from .mutant import make
from .seeds import Files
from .shrink import shrunk

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 60
REUSES = 200
FAILURES = ("wrong", "crash", "hang", "memory", "internal", "message")


class Worker:
    """A process that judges models one after the other; it is started anew when one kills it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._uses = 0

    def judge(self, files: Files) -> Verdict:
        """As :func:`tests.mutants.judge.judge`; also ``crash`` and ``hang``."""
        if self._process is None or self._uses >= REUSES:
            self.close()
            self._start()
        assert self._connection is not None
        self._uses += 1
        self._connection.send(files)
        stage, end = "start", time.monotonic() + SECONDS
        while self._connection.poll(max(0.0, end - time.monotonic())):
            try:
                kind, *rest = self._connection.recv()
            except EOFError:
                return self._dead("crash", stage)
            if kind == "verdict":
                status, message = rest
                return status, message
            stage = rest[0]
        return self._dead("hang", stage)

    def close(self) -> None:
        if self._process is not None:
            assert self._connection is not None
            self._connection.close()
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        command = [sys.executable, "-m", "tests.mutants.judge", str(theirs.fileno())]
        self._process = subprocess.Popen(
            command, cwd=ROOT, pass_fds=[theirs.fileno()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        theirs.close()
        self._uses = 0
        if not self._connection.poll(120) or self._connection.recv() != ("stage", "ready"):
            raise RuntimeError("the process that judges models does not start")

    def _dead(self, status: str, stage: str) -> Verdict:
        """The verdict on a model that the process died or hung of; onnxruntime's own deaths are not moec's."""
        assert self._process is not None
        if status == "crash":
            self._process.wait()
        message = f"in {stage}" if status == "hang" else f"in {stage}, exit code {self._process.returncode}"
        self.close()
        return ("unchecked", f"onnxruntime: {status} {message}") if stage == "reference" else (status, message)


def sweep(
    count: int, seed: int, first: int = 0, out: pathlib.Path | None = None
) -> tuple[collections.Counter[str], list[str]]:
    """Counts by status, and a line for every failure."""
    counts: collections.Counter[str] = collections.Counter()
    failures: list[str] = []
    worker = Worker()
    try:
        for index in range(first, first + count):
            mutant = make(seed, index)
            status, message = worker.judge(mutant.files)
            counts[status] += 1
            line = f"{index}\t{status}\t{mutant.history}\t{message[:400]}"
            if out is not None:
                with open(out / "log.tsv", "a") as log:
                    log.write(line.replace("\n", "\\n") + "\n")
            if status not in FAILURES:
                continue
            failures.append(line)
            if out is not None:
                smaller = shrunk(mutant.files, (status, message), worker.judge)
                folder = out / f"{seed}-{index}-{status}"
                folder.mkdir(exist_ok=True)
                for name, data in smaller.items():
                    (folder / name).write_bytes(data)
                (folder / "about.txt").write_text(
                    f"seed {seed}, mutant {index}: {mutant.history}\n{status}: {message}\n"
                )
    finally:
        worker.close()
    return counts, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this one mutant alone")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("mutants"), help="a folder for failures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    count, first = (1, options.only) if options.only is not None else (options.count, options.first)
    counts, failures = sweep(count, options.seed, first, options.out)
    print("\n".join(failures))
    print(", ".join(f"{name} {number}" for name, number in counts.most_common()))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
