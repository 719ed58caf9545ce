"""Reserved address space is memory where it was opened, and only there."""

from __future__ import annotations

import os
import pathlib
import resource

import pytest

from moec.runtime.direct_reads import PAGE
from moec.runtime.reserved_memory import ReservedMemory, _without_small_gaps


def data_bytes() -> int:
    """Bytes of this process that count for its limit on data."""
    lines = pathlib.Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmData:"))


def is_readable(memory: ReservedMemory, place: int) -> bool:
    reader, writer = os.pipe()
    try:
        return os.write(writer, memory.array[place : place + 1].data) == 1
    except OSError:
        return False
    finally:
        os.close(reader)
        os.close(writer)


def test_only_pages_of_opened_parts_can_be_accessed():
    memory = ReservedMemory(9 * PAGE + 1)
    memory.open(
        [(3 * PAGE + 5, 4 * PAGE + 1), (9 * PAGE, 9 * PAGE + 1), (7 * PAGE, 7 * PAGE), (3 * PAGE, 3 * PAGE + 9)]
    )
    assert [page for page in range(10) if is_readable(memory, page * PAGE)] == [3, 4, 9]
    memory.array[4 * PAGE + 9] = 7
    assert memory.array[3 * PAGE : 5 * PAGE].sum() == 7


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="only Linux limits data in this way")
def test_only_opened_parts_count_for_the_limit_on_data():
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + (64 << 20), before[1]))
    try:
        memory = ReservedMemory(1 << 40)
        memory.open([(1 << 39, (1 << 39) + (16 << 20))])
        with pytest.raises(OSError, match="Cannot allocate memory"):
            memory.open([(0, 128 << 20)])
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
    memory.open([(0, 128 << 20)])


@pytest.mark.parametrize(
    ("most", "expected"),
    [(3, [(0, 1), (3, 4), (9, 10), (11, 12)]), (2, [(0, 1), (3, 4), (9, 12)]), (1, [(0, 4), (9, 12)]), (0, [(0, 12)])],
)
def test_the_smallest_of_too_many_gaps_are_opened(most, expected):
    assert _without_small_gaps([(0, 1), (3, 4), (9, 10), (11, 12)], most) == expected
    assert _without_small_gaps([], most) == []
