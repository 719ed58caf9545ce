"""The instrument for mutation testing: it finds operators, and what it puts in their place is what runs."""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import pytest

from tests.instruments import mutations
from tests.instruments.executed import ROOT
from tests.instruments.mutations import (
    Mutant,
    Outcome,
    affordable,
    equivalent,
    executing_tests,
    mutants_of,
    outcome,
    sample,
)

SOURCE = '''
def f(a: int | None, b: float) -> bool | None:
    """a < b"""
    c = a + b * 2 if a is not None and b <= 3 else -b
    return (
        c ==
        b or a not in (1, 2)
    )
'''


def test_every_operator_is_found_once(tmp_path: pathlib.Path, monkeypatch) -> None:
    monkeypatch.setattr(mutations, "ROOT", tmp_path)
    path = tmp_path / "f.py"
    path.write_text(SOURCE)
    actual = list(mutants_of(path))
    assert sorted((one.line, SOURCE[one.start : one.end], one.new) for one in actual) == [
        (4, "*", "+"),
        (4, "+", "-"),
        (4, "<=", "<"),
        (4, "and", "or"),
        (4, "is not", "is"),
        (6, "==", "!="),
        (7, "not in", "in"),
        (7, "or", "and"),
    ]
    for one in actual:
        compile(one.text, "f.py", "exec")


@pytest.fixture
def found(tmp_path: pathlib.Path, monkeypatch) -> list[Mutant]:
    """The mutants of SOURCE, which is the text of moec/f.py."""
    monkeypatch.setattr(mutations, "ROOT", tmp_path)
    path = tmp_path / "moec" / "f.py"
    path.parent.mkdir()
    path.write_text(SOURCE)
    return list(mutants_of(path))


def test_a_sample_is_the_same_for_a_seed_whatever_else_there_is(found, monkeypatch) -> None:
    monkeypatch.setattr(mutations, "FOLDERS", ["moec"])
    assert sample(8, 3) == sample(8, 3) != sample(8, 4)
    before = [str(one) for one in sample(8, 3)]
    (found[0].path.parent / "g.py").write_text("a < b")
    assert [str(one) for one in sample(9, 3) if one.path.stem == "f"] == before


@dataclasses.dataclass
class Map:
    """A hand-made map of the lines that tests execute."""

    lines: Mapping[int, set[str]]
    seconds: Mapping[str, float]
    fresh: bool = True

    def of(self, path: pathlib.Path) -> Mapping[int, set[str]]:
        return self.lines

    def is_of(self, path: pathlib.Path) -> bool:
        return self.fresh


SECONDS = {
    "tests/test_f.py::a": 2.0,
    "tests/test_f.py::b[1]": 1.0,
    "tests/test_f.py::b[2]": 1.0,
    "tests/ir/g.py::c": 0.1,
}


def test_tests_are_those_that_execute_the_operands_the_nearest_first(found) -> None:
    executed: Any = Map({4: set(SECONDS), 6: {"tests/ir/g.py::c"}, 9: {"tests/test_f.py::a"}}, SECONDS)
    by_line = {one.line: executing_tests(one, executed) for one in found}
    assert by_line[4] == ["tests/test_f.py::b[1]", "tests/test_f.py::a", "tests/test_f.py::b[2]", "tests/ir/g.py::c"]
    assert by_line[6] == ["tests/ir/g.py::c"]


def test_what_no_test_executes_survives_at_once(found) -> None:
    executed: Any = Map({4: set(SECONDS)}, SECONDS)
    unseen = next(one for one in found if one.line == 6)
    assert executing_tests(unseen, executed) == []
    assert outcome(unseen, executed) == Outcome("not executed")
    assert outcome(unseen, executed).lives


def test_of_what_runs_on_import_or_was_changed_all_tests_of_the_file_run(found) -> None:
    on_import = next(one for one in found if one.line == 6)
    executed: Any = Map({4: set(SECONDS), 6: set()}, SECONDS)
    assert set(executing_tests(on_import, executed)) == set(SECONDS)
    changed: Any = Map({4: {"tests/ir/g.py::c"}}, SECONDS, fresh=False)
    assert executing_tests(on_import, changed) == ["tests/ir/g.py::c"]


def test_of_a_file_that_only_a_parser_reads_the_tests_of_those_who_import_it_run(found, monkeypatch) -> None:
    monkeypatch.setattr(mutations, "FOLDERS", ["moec"])
    (kernel,) = (one for one in found if one.line == 6 and one.new == "!=")
    user = kernel.path.with_name("g.py")
    user.write_text("from moec.f import f")
    kernel.path.with_name("h.py").write_text("from moec.f.g import f")
    executed: Any = Map({6: set()}, SECONDS)
    lines = {kernel.path: {6: set()}, user: {3: {"tests/ir/g.py::c"}}}
    monkeypatch.setattr(executed, "of", lines.__getitem__)
    assert executing_tests(kernel, executed) == ["tests/ir/g.py::c"]


def test_a_script_is_executed_by_who_executes_its_definition(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "f.py"
    path.write_text("def f():\n    @T.prim_func(private=True)\n    def g(a: T.handle):\n        T.store(a, 1, a + 2)\n")
    assert [mutant.lines for mutant in mutants_of(path)] == [range(2, 4)]


def test_tests_are_as_many_as_the_cap_allows_but_one_at_least() -> None:
    assert affordable(list(SECONDS), SECONDS, 3.2) == [
        "tests/test_f.py::a",
        "tests/test_f.py::b[1]",
        "tests/ir/g.py::c",
    ]
    assert affordable(list(SECONDS), SECONDS, 0.5) == ["tests/test_f.py::a"]
    assert affordable([], SECONDS, 0.5) == []


@pytest.fixture
def flipped() -> Mutant:
    """Find a mutant of a comparison in a module that every process imports."""
    path = mutations.ROOT / "moec" / "ir" / "intervals.py"
    return next(mutant for mutant in mutants_of(path) if mutant.new == "!=")


def test_a_mutant_is_what_a_process_and_those_it_starts_import(flipped: Mutant, tmp_path, monkeypatch) -> None:
    replacement = tmp_path / flipped.path.name
    replacement.write_text(flipped.text)
    monkeypatch.setenv("MOEC_MUTANT", str(replacement))
    monkeypatch.setenv("MOEC_MUTANT_OF", str(flipped.path))
    monkeypatch.setenv("PYTHONPATH", str(mutations.HOOK))
    inner = "import inspect, moec.ir.intervals as m; print(len(inspect.getsource(m)), end=' ')"
    outer = f"import subprocess, sys; {inner}; subprocess.run([sys.executable, '-c', {inner!r}])"
    done = subprocess.run([sys.executable, "-c", outer], capture_output=True, text=True, check=True)
    assert done.stdout.split().count(str(len(flipped.text))) == 2


INTERVALS = "tests/ir/test_intervals.py"


@pytest.mark.nightly  # starts a process of tests
def test_a_mutant_that_a_test_sees_is_killed(flipped: Mutant) -> None:
    executed: Any = Map({line: {INTERVALS} for line in flipped.lines}, {INTERVALS: 2.0})
    actual = outcome(flipped, executed)
    assert actual.kind == "killed" and actual.detail.startswith(INTERVALS)


def test_a_mutant_without_end_hangs(flipped: Mutant, monkeypatch) -> None:
    monkeypatch.setattr(mutations, "_run", lambda tests, mutant, seconds: None)
    executed: Any = Map({line: {INTERVALS} for line in flipped.lines}, {INTERVALS: 2.0})
    assert outcome(flipped, executed).kind == "hangs"


def test_a_slow_machine_is_no_hanging_mutant(flipped: Mutant, monkeypatch) -> None:
    times: list[float | None] = []

    def run(tests, mutant, seconds):
        times.append(seconds)
        if mutant is None:
            time.sleep(0.05)
        return mutations.Ended(0, "") if len(times) == 3 else None

    monkeypatch.setattr(mutations, "_run", run)
    monkeypatch.setattr(mutations, "START", 0.0)
    executed: Any = Map({line: {INTERVALS} for line in flipped.lines}, {INTERVALS: 0.001})
    assert outcome(flipped, executed) == Outcome("survives", "1 of 1 tests")
    assert times[0] is not None and times[2] is not None and times[0] < 0.05 < 0.25 <= times[2]


def test_equivalent_mutants_exist_and_have_a_reason() -> None:
    known = {
        str(mutant) for path in {ROOT / name.split(":")[0] for name in equivalent()} for mutant in mutants_of(path)
    }
    assert all(reason and name in known for name, reason in equivalent().items())


@pytest.mark.nightly
def test_most_mutants_are_killed() -> None:
    subprocess.run([sys.executable, "-m", "tests.instruments.executed"], cwd=ROOT, check=True)
    executed = mutations.Executed()
    chosen = sample(300, 1)
    survivors = [str(one) for one in chosen if outcome(one, executed).lives]
    assert len(survivors) <= 0.05 * len(chosen), "\n".join(survivors)
