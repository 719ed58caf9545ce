"""Mutation testing: does a test notice when an operator in moec's own code is another?

python -m tests.instruments.executed                          # once: which tests execute which lines
python -m tests.instruments.mutations 300 --seed 1            # a sample of everything
python -m tests.instruments.mutations 50 --since main~3       # of the lines changed since a commit

A mutant has to pass the tests that execute its operator and no others, so one that no test executes survives at once.
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import dataclasses
import hashlib
import multiprocessing
import os
import pathlib
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pytest

from tests.instruments.executed import FOLDERS, QUICK, ROOT, Executed

HOOK = ROOT / "tests" / "instruments" / "mutated"
EQUIVALENT = ROOT / "tests" / "instruments" / "equivalent_mutants.txt"
CAP = 60.0
"""Seconds that the tests of one mutant take as the map was made; of more tests the nearest and shortest run."""
START, PATIENCE = 20.0, 5.0
"""What runs for longer than ``PATIENCE`` times as long as without a mutant, and ``START`` seconds, hangs."""

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
    """One operator of a file that becomes another. ``start`` and ``end`` are places in ``source``, the file's text; who
    executes one of ``lines`` executes it."""

    path: pathlib.Path
    source: str = dataclasses.field(repr=False, compare=False)
    lines: range
    start: int
    end: int
    new: str

    @property
    def text(self) -> str:
        """The whole file, changed."""
        return self.source[: self.start] + self.new + self.source[self.end :]

    @property
    def line(self) -> int:
        """The line of the operator, from 1."""
        return self.source.count("\n", 0, self.start) + 1

    def __str__(self) -> str:
        before = self.source[: self.start].rpartition("\n")[2].lstrip()
        old, after = self.source[self.start : self.end], self.source[self.end :].partition("\n")[0]
        return f"{self.path.relative_to(ROOT)}: {before}[{old} -> {self.new}]{after}"


def mutants_of(path: pathlib.Path) -> Iterator[Mutant]:
    """Every operator between two operands of an expression, once; annotations are no expressions."""
    source = path.read_text(encoding="utf-8")
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def place(line: int, column: int) -> int:
        text = source[starts[line - 1] : starts[line]]
        return starts[line - 1] + len(text.encode()[:column].decode())

    for left, operator, right, script in _operations(ast.parse(source)):
        swap = SWAPS.get(type(operator))
        if swap is None:
            continue
        start, end = place(left.end_lineno or 0, left.end_col_offset or 0), place(right.lineno, right.col_offset)
        match = re.search(rf"(?<![\w]){re.escape(swap[0])}(?![\w=])", source[start:end])
        if match is not None:
            lines = range(left.lineno, (right.end_lineno or right.lineno) + 1) if script is None else _header(script)
            yield Mutant(path, source, lines, start + match.start(), start + match.end(), swap[1])


def _header(function: ast.FunctionDef) -> range:
    return range(function.decorator_list[0].lineno, function.body[0].lineno)


def _operations(tree: ast.AST) -> Iterator[tuple[ast.expr, ast.AST, ast.expr, ast.FunctionDef | None]]:
    """Left operand, operator, right operand, and the function around them if TVMScript's parser reads it: Python runs
    none of its lines."""
    for node, script in _expressions(tree, None):
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            for left, operator, right in zip(operands, node.ops, operands[1:], strict=False):
                yield left, operator, right, script
        elif isinstance(node, ast.BoolOp):
            for left, right in zip(node.values, node.values[1:], strict=False):
                yield left, node.op, right, script
        elif isinstance(node, ast.BinOp) and not isinstance(node.left, ast.Constant | ast.JoinedStr):
            yield node.left, node.op, node.right, script


def _expressions(tree: ast.AST, script: ast.FunctionDef | None) -> Iterator[tuple[ast.AST, ast.FunctionDef | None]]:
    if isinstance(tree, ast.FunctionDef) and any(ast.unparse(it).startswith("T.") for it in tree.decorator_list):
        script = tree
    for name, field in ast.iter_fields(tree):
        if name in ("annotation", "returns"):
            continue
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.AST):
                yield child, script
                yield from _expressions(child, script)


def executing_tests(mutant: Mutant, executed: Executed) -> list[str]:
    """The tests that execute a mutant's operator, those beside its file first, of each the shortest; of what runs on
    import, and where the file is not that of the map any more, those that execute anything of the file, or, where all
    of it is read by TVMScript's parser, anything of the files that import it."""
    result = executed.of(mutant.path)
    if executed.is_of(mutant.path):
        tests: set[str] = set().union(*(result.get(line, set()) for line in mutant.lines))
        if not tests and not any(line in result for line in mutant.lines):
            return []
    else:
        tests = set()
    tests = tests or set().union(*result.values())
    if result and not tests:
        tests = set().union(*(lines for path in _importers(mutant.path) for lines in executed.of(path).values()))
    return _nearest_first(mutant.path, tests, executed.seconds)


def _importers(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """The files that import names of a file."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    statement = re.compile(rf"^\s*from (moec\.)?{re.escape(module)} import\b", re.MULTILINE)
    for folder in FOLDERS:
        yield from (path for path in sorted((ROOT / folder).rglob("*.py")) if statement.search(path.read_text("utf-8")))


def _nearest_first(path: pathlib.Path, tests: Iterable[str], seconds: Mapping[str, float]) -> list[str]:
    """Tests of the file's stem, then of the folder that mirrors its own, then others; among these the shortest first,
    but the second set of parameters of a test when each test had its first."""
    relative = path.relative_to(ROOT).parts[:-1]
    folder = pathlib.PurePath("tests", *relative[relative[0] == "moec" :])
    turns: collections.Counter[str] = collections.Counter()
    places: dict[str, tuple[bool, bool, int]] = {}
    for test in sorted(tests, key=lambda test: (seconds[test], test)):
        file, function = pathlib.PurePath(test.split("::")[0]), test.split("[")[0]
        places[test] = file.stem != f"test_{path.stem}", file.parent != folder, turns[function]
        turns[function] += 1
    return sorted(places, key=places.__getitem__)


def affordable(tests: Sequence[str], seconds: Mapping[str, float], cap: float) -> list[str]:
    """The first tests, as many as take ``cap`` seconds together, but one at least."""
    kept, total = list(tests[:1]), seconds[tests[0]] if tests else 0.0
    for test in tests[1:]:
        if total + seconds[test] <= cap:
            kept.append(test)
            total += seconds[test]
    return kept


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Outcome of a mutant. ``kind``: killed, hangs (in tests that end without it), survives, not executed (by any test)
    or equivalent. ``detail``: the test that failed, or the number of tests that execute it and ran."""

    kind: str
    detail: str = ""

    @property
    def lives(self) -> bool:
        return self.kind in ("survives", "not executed")


def outcome(mutant: Mutant, executed: Executed, cap: float = CAP) -> Outcome:
    """Run the tests that execute a mutant, as many as ``cap`` allows."""
    if str(mutant) in equivalent():
        return Outcome("equivalent")
    tests = executing_tests(mutant, executed)
    if not tests:
        return Outcome("not executed")
    chosen = affordable(tests, executed.seconds, cap)
    limit = START + PATIENCE * sum(executed.seconds[test] for test in chosen)
    done = _run(chosen, mutant, limit)
    if done is None:  # the machine may be busier than when the map was made
        started = time.monotonic()
        _run(chosen, None, None)
        longer = START + PATIENCE * (time.monotonic() - started)
        done = _run(chosen, mutant, longer) if longer > limit else None
    if done is None:
        return Outcome("hangs", f"in {len(chosen)} of {len(tests)} tests")
    if done.code == 0:
        return Outcome("survives", f"{len(chosen)} of {len(tests)} tests")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.output, re.MULTILINE)
    if done.code in (4, 5) and (_run([*chosen, "--collect-only"], None, None) or done).returncode != 0:
        raise SystemExit(f"the map of {mutant.path} names tests that are not there; make it anew\n{done.output[-500:]}")
    return Outcome("killed", failed[1] if failed else f"pytest ends with {done.code}")


@dataclasses.dataclass(frozen=True)
class Ended:
    """Exit code and output of pytest."""

    code: int | None
    output: str


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "pytest", "sympy", "torch", "tvm"]
)


def _run(tests: Sequence[str], mutant: Mutant | None, seconds: float | None) -> Ended | None:
    """pytest, up to the first failure, in a process that imports the mutant; None if it takes longer. The process is
    forked from one that has imported what moec imports of others, and nothing of moec."""
    with tempfile.TemporaryDirectory() as folder:
        environment: dict[str, str] = {}
        if mutant is not None:
            replacement = pathlib.Path(folder, mutant.path.name)
            replacement.write_text(mutant.text, encoding="utf-8")
            environment = {"MOEC_MUTANT": str(replacement), "MOEC_MUTANT_OF": str(mutant.path), "PYTHONPATH": str(HOOK)}
        output = pathlib.Path(folder, "output")
        process = _FORKS.Process(target=_in_fork, args=(list(tests), environment, output))
        process.start()
        process.join(seconds)
        if process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()
            return None
        return Ended(process.exitcode, output.read_text(errors="replace"))


def _in_fork(tests: list[str], environment: Mapping[str, str], output: pathlib.Path) -> None:
    os.setsid()
    os.chdir(ROOT)
    os.environ.update(environment)
    with output.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    if environment:
        runpy.run_path(str(HOOK / "sitecustomize.py"))
    code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-m", QUICK, *tests])
    sys.stdout.flush()
    os._exit(code)  # not what tests left to be done at the end of a process


def equivalent() -> dict[str, str]:
    """The mutants that compute the same, each with the reason: the comment lines above it."""
    reasons: dict[str, str] = {}
    reason: list[str] = []
    for line in EQUIVALENT.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            reason.append(line.removeprefix("#").strip())
        elif line:
            reasons[line] = " ".join(reason)
        else:
            reason = []
    return reasons


def sample(count: int, seed: int, since: str | None = None) -> list[Mutant]:
    """``count`` mutants, or as many as there are; with ``since`` on lines that were changed since that commit. Which
    ones follows from the text of each, so that a change elsewhere leaves a sample as it was."""
    paths = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    changed = None if since is None else _changed_lines(since)
    mutants = [mutant for path in paths if changed is None or path in changed for mutant in mutants_of(path)]
    if changed is not None:
        mutants = [mutant for mutant in mutants if mutant.line in changed[mutant.path]]
    ranks: dict[Mutant, bytes] = {}
    alike: collections.Counter[str] = collections.Counter()
    for mutant in mutants:
        ranks[mutant] = hashlib.sha256(f"{seed} {mutant} {alike[str(mutant)]}".encode()).digest()
        alike[str(mutant)] += 1
    return sorted(mutants, key=ranks.__getitem__)[:count]


def _changed_lines(since: str) -> dict[pathlib.Path, set[int]]:
    command = ["git", "diff", "--unified=0", since, "--", *FOLDERS]
    diff = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    results: dict[pathlib.Path, set[int]] = {}
    path = ROOT
    for line in diff.splitlines():
        if line.startswith("+++ b/"):
            path = ROOT / line[6:]
        elif hunk := re.match(r"@@ \S+ \+(\d+)(?:,(\d+))? @@", line):
            first, count = int(hunk[1]), int(hunk[2] or 1)
            results.setdefault(path, set()).update(range(first, first + count))
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=1, metavar="N", help="begin with the sample's mutant N")
    parser.add_argument("--since", metavar="COMMIT")
    parser.add_argument("--cap", type=float, default=CAP, metavar="SECONDS", help="of tests for each mutant")
    options = parser.parse_args()
    executed, counts = Executed(), collections.Counter[str]()
    print(f"{len(executed.seconds)} tests are in the map; of those of a mutant as many run as take {options.cap:g} s")
    chosen = sample(options.count, options.seed, options.since)
    for number, mutant in enumerate(chosen[options.first - 1 :], options.first):
        result = outcome(mutant, executed, options.cap)
        counts[result.kind] += 1
        print(f"{number:4d} {result.kind:12s}  {mutant}\n{'':19s}{result.detail}", flush=True)
    print(", ".join(f"{count} {kind}" for kind, count in counts.most_common()))
    return 1 if counts["survives"] + counts["not executed"] else 0


if __name__ == "__main__":
    sys.exit(main())
