"""Malformed inputs of every kind are refused in one line or read: a sample, and thousands in the nightly."""

from __future__ import annotations

import pathlib

import pytest

from . import json_damage
from .malformed.judge import Case, Verdict, judge, run
from .malformed.kinds import MODULES, kind_named
from .malformed.sweep import sweep, table

QUICK = ("gguf", "external")
"""Kinds whose intact files cost nothing, and most of whose cases compile nothing."""


@pytest.mark.parametrize("kind", QUICK)
def test_a_sample(kind: str, tmp_path: pathlib.Path) -> None:
    kind_named(kind).prepare(tmp_path)
    actual = [judge(Case(kind, str(tmp_path), 5, index)) for index in range(8)]
    assert not [verdict for verdict in actual if verdict.failed]
    assert any(verdict.status == "refused" for verdict in actual)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", MODULES)
def test_many(kind: str) -> None:
    assert not [(case, verdict) for case, verdict in sweep(kind, range(420), seed=1) if verdict.failed]


def test_a_case_follows_from_its_number(tmp_path: pathlib.Path) -> None:
    first, again, other = (judge(Case("gguf", str(tmp_path), 1, index)) for index in (4, 4, 5))
    assert first.damage == again.damage != other.damage


def test_a_change_of_a_value_that_was_set_is_no_other_cases() -> None:
    content, value = {"a": 0}, [[0]]
    for where, new in ((("a",), value), (("a", 0), value)):
        json_damage.change(content, "set", where, new)
    assert (content, value) == ({"a": [[[0]]]}, [[0]])


def test_what_is_wrong_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect, a panic, memory, two lines and wrong usage are failures; a refusal is none."""
    import numpy as np

    from moec.common.errors import MoecError

    class Panic(BaseException):
        pass

    def status_of(error: BaseException) -> str:
        def fail(*_arguments: object, **_options: object) -> None:
            raise error

        monkeypatch.setattr("moec.tools.doctor.examine", fail)
        return run(["doctor"])[0]

    assert status_of(MoecError("file: is damaged")) == "refused"
    assert status_of(KeyError("x")) == "crashed"
    assert status_of(Panic("x")) == "crashed"
    assert status_of(MoecError("there is not enough memory")) == "memory"
    assert run(["no-such-command"])[0] == "crashed"

    def fill(*_arguments: object) -> dict[str, object]:
        return {"problems": [], "filled": int(np.zeros(9 << 30, np.uint8).sum())}

    monkeypatch.setattr("moec.tools.doctor.examine", fill)
    assert run(["doctor"])[0] == "memory"


def test_the_table_has_a_row_for_each_kind() -> None:
    rows = table([("npz", Verdict("pass", "")), ("gguf", Verdict("hung", ""))]).splitlines()
    assert [row.split()[0] for row in rows] == ["cases", "npz", "gguf", "all"]
    assert rows[-1].split()[1:] == ["2", "1", "0", "0", "0", "1", "0"]
