"""Mutation testing: does a test notice when an operator in moec's own code is another?

python -m tests.instruments.mutations 300 --seed 1            # a sample of everything
python -m tests.instruments.mutations 50 --since main~3       # of the lines changed since a commit
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ("moec", "passes", "targets")
HOOK = ROOT / "tests" / "instruments" / "mutated"
EQUIVALENT = ROOT / "tests" / "instruments" / "equivalent_mutants.txt"
SECONDS = 300
"""Time for the tests of one mutant; one that takes longer hangs, which a test would notice."""

SWAPS: Mapping[type, tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "+"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "+"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One operator of a file that becomes another. ``start`` and ``end`` are places in its text."""

    path: pathlib.Path
    line: int
    start: int
    end: int
    new: str

    @property
    def text(self) -> str:
        """The whole file, changed."""
        source = self.path.read_text(encoding="utf-8")
        return source[: self.start] + self.new + source[self.end :]

    def __str__(self) -> str:
        source = self.path.read_text(encoding="utf-8")
        line = source.splitlines()[self.line - 1].strip()
        old = source[self.start : self.end]
        return f"{self.path.relative_to(ROOT)}: {old} -> {self.new}: {line}"


def mutants_of(path: pathlib.Path) -> Iterator[Mutant]:
    """Every operator between two operands of an expression, once; annotations are no expressions."""
    source = path.read_text(encoding="utf-8")
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def place(line: int, column: int) -> int:
        text = source[starts[line - 1] : starts[line]]
        return starts[line - 1] + len(text.encode()[:column].decode())

    for left, operator, right in _operations(ast.parse(source)):
        swap = SWAPS.get(type(operator))
        if swap is None:
            continue
        start, end = place(left.end_lineno or 0, left.end_col_offset or 0), place(right.lineno, right.col_offset)
        found = re.search(rf"(?<![\w]){re.escape(swap[0])}(?![\w=])", source[start:end])
        if found is not None:
            line = source.count("\n", 0, start + found.start()) + 1
            yield Mutant(path, line, start + found.start(), start + found.end(), swap[1])


def _operations(tree: ast.AST) -> Iterator[tuple[ast.expr, ast.AST, ast.expr]]:
    for node in _expressions(tree):
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            yield from zip(operands, node.ops, operands[1:], strict=False)
        elif isinstance(node, ast.BoolOp):
            yield from ((left, node.op, right) for left, right in zip(node.values, node.values[1:], strict=False))
        elif isinstance(node, ast.BinOp) and not isinstance(node.left, ast.Constant | ast.JoinedStr):
            yield node.left, node.op, node.right


def _expressions(tree: ast.AST) -> Iterator[ast.AST]:
    for name, field in ast.iter_fields(tree):
        if name in ("annotation", "returns"):
            continue
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.AST):
                yield child
                yield from _expressions(child)


def beside(path: pathlib.Path) -> list[str]:
    """The tests beside a file: those of its stem, and of the nearest folder of tests that mirrors its own."""
    relative = path.relative_to(ROOT)
    parts = relative.parts[1:-1] if relative.parts[0] == "moec" else relative.parts[:-1]
    named = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tests").rglob(f"test_{path.stem}.py"))
    folder = ROOT / "tests" / pathlib.Path(*parts)
    while not folder.is_dir():
        folder = folder.parent
    beside = [str(folder.relative_to(ROOT))] if folder != ROOT / "tests" else ["tests/test_api.py", "tests/cli"]
    return [*named, *beside]


def survives(mutant: Mutant) -> bool:
    """Whether all tests beside it pass, first those of the file's stem."""
    with tempfile.TemporaryDirectory() as folder:
        replacement = pathlib.Path(folder, mutant.path.name)
        replacement.write_text(mutant.text, encoding="utf-8")
        environment = os.environ | {
            "MOEC_MUTANT": str(replacement),
            "MOEC_MUTANT_OF": str(mutant.path),
            "PYTHONPATH": str(HOOK),
        }
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "-m",
            "not nightly and not slow",
        ]
        for tests in beside(mutant.path):
            try:
                done = subprocess.run(
                    [*command, tests], cwd=ROOT, env=environment, capture_output=True, timeout=SECONDS, check=False
                )
            except subprocess.TimeoutExpired:
                return False
            if done.returncode not in (0, 5):  # 5: all its tests are slow ones
                return False
    return True


def sample(count: int, seed: int, since: str | None = None) -> list[Mutant]:
    """``count`` mutants, or as many as there are; with ``since`` on lines that were changed since that commit."""
    paths = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    mutants = [mutant for path in paths for mutant in mutants_of(path)]
    if since is not None:
        changed = _changed_lines(since)
        mutants = [one for one in mutants if one.line in changed.get(one.path, ())]
    known = set(EQUIVALENT.read_text(encoding="utf-8").splitlines())
    mutants = [one for one in mutants if str(one) not in known]
    return random.Random(seed).sample(mutants, min(count, len(mutants)))


def _changed_lines(since: str) -> dict[pathlib.Path, set[int]]:
    command = ["git", "diff", "--unified=0", since, "--", *FOLDERS]
    diff = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found: dict[pathlib.Path, set[int]] = {}
    path = ROOT
    for line in diff.splitlines():
        if line.startswith("+++ b/"):
            path = ROOT / line[6:]
        elif hunk := re.match(r"@@ \S+ \+(\d+)(?:,(\d+))? @@", line):
            first, count = int(hunk[1]), int(hunk[2] or 1)
            found.setdefault(path, set()).update(range(first, first + count))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--since", metavar="COMMIT")
    given = parser.parse_args()
    chosen, survivors = sample(given.count, given.seed, given.since), 0
    for number, mutant in enumerate(chosen, 1):
        lives = survives(mutant)
        survivors += lives
        print(f"{number:4d} {'SURVIVES' if lives else 'killed'}  {mutant}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
