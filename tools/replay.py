"""Process replay: what a change to the compiler does to what it makes of models.

    python tools/replay.py record before MODEL... --target cpu --target cuda:sm_80   # in a checkout without the change
    python tools/replay.py record after MODEL... --target cpu --target cuda:sm_80    # in one with it
    python tools/replay.py compare before after

A record holds, for each model and target, the IR after each pass, the generated texts and a digest of the weights, or
the reason why the model is refused. Machine code and times are left out. ``MODEL`` is a file, or a folder in which
models lie in folders of their own. ``compare`` prints the first difference of each file and ends with 1 if there is
any, or if there was nothing to compare.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

KEPT = {".onnxtxt", ".tir", ".relax", ".cu", ".cuh", ".cpp", ".h", ".tcl"}
"""What moec writes itself; .ll, .s and .ptx follow from it."""


def models_of(paths: Sequence[pathlib.Path]) -> dict[str, pathlib.Path]:
    """The models by the names of the folders they lie in."""
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.glob("*/model.onnx")))]
    return {file.resolve().parent.name: file.resolve() for file in files}


def record(model: pathlib.Path, target: str, folder: pathlib.Path) -> None:
    """What moec makes of a model for a target, as text files in ``folder``."""
    import moec
    from moec import compiler

    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary:
        made = pathlib.Path(temporary, "made")
        try:
            compiler.write(model, made, target)
        except moec.MoecError as error:
            (folder / "refused.txt").write_text(f"{error}\n".replace(str(model), model.name))
            return
        for file in sorted(path for path in made.rglob("*") if path.is_file()):
            kept = folder / file.relative_to(made)
            if file.suffix in KEPT:
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, kept)
            elif file.suffix in (".bin", ".dat"):
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.with_suffix(".sha256").write_text(hashlib.sha256(file.read_bytes()).hexdigest() + "\n")


def lines_of(file: pathlib.Path, code: bool) -> list[str]:
    """The lines of a record's file; with ``code`` without the comments at the head of a generated text."""
    lines = file.read_text().splitlines()
    start = next((i for i, line in enumerate(lines) if not line.startswith(("#", ";", "//"))), 0) if code else 0
    return lines[start:]


def differences(before: pathlib.Path, after: pathlib.Path, *, code: bool = False) -> Iterator[str]:
    """A line for each file that only one record has, or that differs: the number and both texts of its first line.
    ``code``: what the heads of generated texts say is not compared."""
    files = sorted({file.relative_to(root) for root in (before, after) for file in root.rglob("*") if file.is_file()})
    if not files:
        yield f"{before} and {after} hold nothing; expected records"
    for file in files:
        old, new = (root / file for root in (before, after))
        if not old.exists() or not new.exists():
            yield f"{file}: only in {before if old.exists() else after}"
        elif old.read_bytes() != new.read_bytes():
            pairs = itertools.zip_longest(lines_of(old, code), lines_of(new, code), fillvalue="")
            found = next(((n, pair) for n, pair in enumerate(pairs, 1) if pair[0] != pair[1]), None)
            if found is not None or not code:
                number, (left, right) = found or (0, ("other bytes", "other bytes"))
                yield f"{file}:{number}\n  - {left}\n  + {right}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recorder = commands.add_parser("record")
    recorder.add_argument("folder", type=pathlib.Path)
    recorder.add_argument("models", type=pathlib.Path, nargs="+", metavar="MODEL")
    recorder.add_argument("--target", action="append", required=True)
    recorder.add_argument("--jobs", type=int, default=os.cpu_count())
    comparer = commands.add_parser("compare")
    comparer.add_argument("before", type=pathlib.Path)
    comparer.add_argument("after", type=pathlib.Path)
    comparer.add_argument("--code", action="store_true", help="do not compare the comments at the head of each text")
    given = parser.parse_args()
    if given.command == "compare":
        found = list(differences(given.before, given.after, code=given.code))
        print("\n".join(found) or "no difference")
        return 1 if found else 0
    with ProcessPoolExecutor(given.jobs, max_tasks_per_child=1) as pool:
        jobs = {}
        for (name, model), target in itertools.product(models_of(given.models).items(), given.target):
            job = pool.submit(record, model, target, given.folder / name / target.replace(":", "-"))
            jobs[job] = f"{name} for {target}"
        for job, what in jobs.items():
            job.result()
            print(what, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
