"""Progress reports during work on many weights."""

from __future__ import annotations

from moec.common import progress


def test_bytes_and_the_time_left_are_told_at_most_twice_a_second(monkeypatch):
    clock, lines = [0.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    sizes = [0, 4_000_000, 1_000_000, 1_000_000, 2_000_000]
    for size in progress.reported(sizes, int, lines.append, "writing", "weight"):
        clock[0] += size / 10_000_000
    assert lines == [
        "writing: weight 4 of 5, 5 of 8 MB, 0 s left",
    ]
    lines.clear()
    for _ in progress.reported(sizes, int, lines.append, "writing", "weight"):
        clock[0] += 10
    assert lines[0] == "writing: weight 3 of 5, 4 of 8 MB, 20 s left"


def test_nothing_to_do_and_nothing_large_is_no_error():
    assert list(progress.reported([], int, progress.silent, "writing", "weight")) == []
    assert list(progress.reported([0, 0], int, progress.silent, "writing", "weight")) == [0, 0]
