"""Estimate of the memory that this process may still allocate: Linux' own, within the limits of control groups."""

from __future__ import annotations

import dataclasses
import pathlib

_INFORMATION = pathlib.Path("/proc/meminfo")
_OWN_GROUPS = pathlib.Path("/proc/self/cgroup")
_GROUPS = pathlib.Path("/sys/fs/cgroup")


@dataclasses.dataclass(frozen=True)
class _CgroupFiles:
    """File names in a version of Linux' control groups. Cached files count as used, but are released on demand."""

    limit: str
    used: str
    cached: str
    cached_for_good: str


_VERSION_1 = _CgroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache", "total_shmem")
_VERSION_2 = _CgroupFiles("memory.max", "memory.current", "file", "shmem")


def available_memory() -> int:
    """Estimate the free memory in bytes; 0 where the system does not tell."""
    try:
        lines = _INFORMATION.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    estimate = next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), 0)
    return max(0, min([estimate, *_left_in_groups()]))


def _left_in_groups() -> list[int]:
    """Compute the free memory of every group that contains this process, directly or through another group."""
    try:
        lines = _OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, names = _GROUPS, _VERSION_2
        elif "memory" in controllers.split(","):
            root, names = _GROUPS / "memory", _VERSION_1
        else:
            continue
        group = root / path.lstrip("/")
        left += [_left_in(folder, names) for folder in (group, *group.parents) if folder.is_relative_to(root)]
    return [number for number in left if number is not None]


def _left_in(group: pathlib.Path, names: _CgroupFiles) -> int | None:
    """Compute the free memory of a group. Returns None for one without a limit."""
    try:
        limit = (group / names.limit).read_text().strip()
        used = int((group / names.used).read_text())
        entries = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:  # the root has no limit, and a container may not see the groups outside of it
        return None
    if limit == "max":
        return None
    reclaimable = int(entries.get(names.cached, 0)) - int(entries.get(names.cached_for_good, 0))
    return int(limit) - (used - reclaimable)
