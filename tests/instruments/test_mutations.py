"""The instrument for mutation testing: it finds operators, and what it puts in their place is what runs."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from tests.instruments import mutations
from tests.instruments.mutations import Mutant, beside, mutants_of, sample, survives

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
    found = list(mutants_of(path))
    assert sorted((one.line, SOURCE[one.start : one.end], one.new) for one in found) == [
        (4, "*", "+"),
        (4, "+", "-"),
        (4, "<=", "<"),
        (4, "and", "or"),
        (4, "is not", "is"),
        (6, "==", "!="),
        (7, "not in", "in"),
        (7, "or", "and"),
    ]
    for one in found:
        compile(one.text, "f.py", "exec")


def test_a_sample_is_the_same_for_a_seed() -> None:
    assert sample(5, 3) == sample(5, 3) != sample(5, 4)


def test_tests_are_those_beside_a_file() -> None:
    root = mutations.ROOT
    assert beside(root / "passes" / "simplify.py") == ["tests/passes/test_simplify.py", "tests/passes"]
    assert beside(root / "moec" / "tune.py")[0] == "tests/test_tune.py"


@pytest.fixture
def flipped() -> Mutant:
    """What decides whether an error's text is too long, in a module that every process imports."""
    path = mutations.ROOT / "moec" / "ir" / "intervals.py"
    return next(one for one in mutants_of(path) if one.new == "!=")


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


def test_a_mutant_that_a_test_sees_is_killed(flipped: Mutant, monkeypatch) -> None:
    monkeypatch.setattr(mutations, "beside", lambda path: ["tests/ir/test_intervals.py"])
    assert not survives(flipped)


@pytest.mark.nightly
def test_most_mutants_are_killed() -> None:
    chosen = sample(300, 1)
    survivors = [str(one) for one in chosen if survives(one)]
    assert len(survivors) <= 0.05 * len(chosen), "\n".join(survivors)
