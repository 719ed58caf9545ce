"""Instruction sets and cores that this machine offers compiled programs."""

from __future__ import annotations

import functools
import re

from moec.common.arguments import check_kind
from moec.common.cores import available_cores
from moec.common.errors import MoecError

CPU_INFORMATION = "/proc/cpuinfo"

# Names of features in LLVM -> in Linux, where more differs than "_", "-" and "."
_LINUX_NAMES = {
    "64bit": "lm",
    "bmi": "bmi1",
    "lzcnt": "abm",
    "neon": "asimd",
    "pclmul": "pclmulqdq",
    "prfchw": "3dnowprefetch",
    "rdrnd": "rdrand",
    "sahf": "lahf_lm",
    "sha": "sha_ni",
    "sse3": "pni",
    "fullfp16": "asimdhp",
    "dotprod": "asimddp",
}


def missing_features(requirements: list[str]) -> list[str]:
    """List the required CPU features (LLVM names) that this machine lacks.

    Only Linux lists its features in a file; on other systems none is reported missing.
    """
    available = cpu_features()
    if not available:
        return []
    return [feature for feature in requirements if linux_feature(feature) not in available]


def linux_feature(feature: str) -> str:
    """Linux' name of a CPU feature, without punctuation. ``feature``: LLVM's name."""
    return _plain(_LINUX_NAMES.get(feature, feature))


@functools.cache
def cpu_features() -> frozenset[str]:
    """Collect the names of the CPU's features without punctuation (``avx512vnni``); empty where the system has no
    list."""
    entries = _cpu_information()
    return frozenset(_plain(name) for name in entries.get("flags", entries.get("Features", "")).split())


def cpu_name() -> str:
    """Return the CPU's marketing name, or ``unknown``."""
    return _cpu_information().get("model name", "unknown")


@functools.cache
def _cpu_information() -> dict[str, str]:
    """Read Linux' entries about the first CPU, by key; empty where there is no such list."""
    try:
        with open(CPU_INFORMATION, encoding="ascii", errors="replace") as information:
            pairs = [line.partition(":") for line in information]
    except OSError:
        return {}
    entries: dict[str, str] = {}
    for key, _, value in pairs:
        entries.setdefault(key.strip(), value.strip())
    return entries


def check_threads(threads: int | None) -> int:
    """Limit a number of threads to the available cores; None stands for all of them.

    Raises MoecError for fewer than one, and for anything but a whole number.
    """
    available = len(available_cores())
    if threads is None:
        return available
    check_kind("threads", threads, int, f"a whole number, 1 or more, or None (all {available} cores)")
    if threads < 1:
        raise MoecError(f"threads is {threads}; expected 1 or more (this process may use {available} cores)")
    return min(threads, available)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]", "", name.lower())
