"""benchmarks/results/models.md: that its rows are so, some of them each night."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tools"))

import model_families as tool

EACH_NIGHT = 6
"""Half a minute each: all of them in two weeks."""


@pytest.mark.nightly
def test_the_table_is_right_today():
    pytest.importorskip("transformers")
    command = [sys.executable, tool.__file__, "--check", "--sample", str(EACH_NIGHT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def test_every_row_of_the_table_is_read():
    rows = tool.known_rows()
    assert len(rows) > 60 and all(line.count(" | ") >= 5 for line in rows.values())
    document = tool.DOCUMENT.read_text(encoding="utf-8")
    assert document == "\n".join([tool.HEAD, *(rows[family] for family in sorted(rows))]) + "\n"


def test_a_new_row_confirms_the_table_or_does_not():
    def row(compiles=True, raised=2, error: float | None = 1e-6, reason=""):
        expected = {"family": "mixtral", "compiles": compiles, "raised": raised, "layers": 2}
        return tool.table_row(expected | {"error": error, "reason": reason})

    assert tool.made_today().count(",") == 2 and tool.made_today() in row()
    assert not tool.disagreement(row(), row(error=3e-5, reason="a remark"))
    assert "the table says" in tool.disagreement(row(), row(compiles=False, raised=0, error=None))
    assert "the table says" in tool.disagreement(row(), row(raised=1))
    assert "error 1e-03" in tool.disagreement(row(), row(error=1e-3))
    assert "error nan" in tool.disagreement(row(), row(error=float("nan")))
    assert "expected at most" in tool.disagreement(row(), row(error=None))


def test_samples_go_round(monkeypatch):
    names = list("abcdefg")
    today = tool.datetime.datetime.now(tool.datetime.UTC)

    class Clock(tool.datetime.datetime):
        days = 0

        @classmethod
        def now(cls, tz=None):
            return today + tool.datetime.timedelta(days=cls.days)

    monkeypatch.setattr(tool.datetime, "datetime", Clock)
    seen = set()
    for Clock.days in range(3):
        seen |= set(tool.sample(names, 3))
    assert seen == set(names) and sorted(tool.sample(names, 99)) == names
