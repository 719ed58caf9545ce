"""Free memory: the system's estimate, within the limits of control groups of both versions."""

from __future__ import annotations

import pathlib

import pytest

from moec.common import free_memory
from moec.common.free_memory import available_memory

GIGABYTE = 1 << 30


@pytest.fixture
def system(monkeypatch, tmp_path) -> pathlib.Path:
    """Make a folder that stands for /proc and /sys of a machine with 4 GiB free and no groups."""
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {4 << 20} kB\n")
    monkeypatch.setattr(free_memory, "_INFORMATION", tmp_path / "meminfo")
    monkeypatch.setattr(free_memory, "_OWN_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(free_memory, "_GROUPS", tmp_path / "groups")
    return tmp_path


def limit(group: pathlib.Path, limit: int | str, used: int, version: int = 2, cached: int = 0, shared: int = 0) -> None:
    group.mkdir(parents=True, exist_ok=True)
    names = free_memory._VERSION_2 if version == 2 else free_memory._VERSION_1
    (group / names.limit).write_text(f"{limit}\n")
    (group / names.used).write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon 5\n{names.cached} {cached}\n{names.cached_for_good} {shared}\n")


def test_without_groups(system):
    assert available_memory() == 4 * GIGABYTE
    (system / "meminfo").unlink()
    assert available_memory() == 0


def test_a_group_of_version_2_and_the_groups_around_it(system):
    (system / "cgroup").write_text("0::/outer/inner\n")
    limit(system / "groups/outer/inner", "max", GIGABYTE)
    assert available_memory() == 4 * GIGABYTE
    limit(system / "groups/outer", 3 * GIGABYTE, GIGABYTE)
    assert available_memory() == 2 * GIGABYTE
    limit(system / "groups/outer/inner", GIGABYTE, GIGABYTE + 4096)
    assert available_memory() == 0


def test_a_group_of_version_1(system):
    (system / "cgroup").write_text("4:cpu,memory:/box\n3:cpuset:/\n")
    limit(system / "groups/memory/box", 3 * GIGABYTE, GIGABYTE, version=1)
    assert available_memory() == 2 * GIGABYTE


def test_cached_files_give_way_but_shared_memory_does_not(system):
    (system / "cgroup").write_text("0::/\n")
    limit(system / "groups", 3 * GIGABYTE, 3 * GIGABYTE, cached=2 * GIGABYTE, shared=GIGABYTE)
    assert available_memory() == GIGABYTE


def test_this_machine():
    assert available_memory() >= 0
