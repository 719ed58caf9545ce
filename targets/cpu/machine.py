"""The processor that kernels are generated for: vector width, registers, features, and the LLVM target that says so."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import platform
from typing import Any

from moec.errors import UnsupportedError

CACHE_LINE = 64
"""Bytes; tensors are aligned to it."""

_SSE4 = ("sse3", "ssse3", "sse4.1", "sse4.2", "popcnt")
_AVX2 = (*_SSE4, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_AVX512_EXTRAS = ("avx512vnni", "avx512bf16", "avx512fp16", "amx-tile", "amx-bf16", "amx-int8")

_LINUX_FLAGS = {
    "pni": "sse3",
    "sse4_1": "sse4.1",
    "sse4_2": "sse4.2",
    "bmi1": "bmi",
    "abm": "lzcnt",
    "avx512_vnni": "avx512vnni",
    "avx512_bf16": "avx512bf16",
    "avx512_fp16": "avx512fp16",
    "amx_tile": "amx-tile",
    "amx_bf16": "amx-bf16",
    "amx_int8": "amx-int8",
}
"""Names in /proc/cpuinfo that differ from LLVM's."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """What kernels need to know about a processor.

    ``lanes``: float32 elements of one vector register. ``registers``: vector registers. ``features``: what the code
    needs from the processor that runs it, in LLVM's names. ``row_tile`` x ``column_tile``: the block of a matrix
    product that is kept in registers; its accumulators, two weight vectors and one broadcast fit without spills.
    """

    name: str
    triple: str
    processor: str
    lanes: int
    registers: int
    row_tile: int
    column_tile: int
    features: tuple[str, ...] = ()

    @property
    def llvm(self) -> dict[str, Any]:
        """The TVM target. The features decide which instructions are used; the processor is only the baseline that
        they extend, because the model that a virtual machine reports is often wrong."""
        attributes = [f"+{feature}" for feature in self.features]
        return {"kind": "llvm", "mtriple": self.triple, "mcpu": self.processor, "mattr": attributes}

    @staticmethod
    def host() -> Machine:
        """The widest machine that this processor can run, with the extras it has."""
        if platform.machine() in ("aarch64", "arm64"):
            return dataclasses.replace(MACHINES["neon"], triple=_triple("aarch64"))
        available = host_features()
        for name in ("avx512", "avx2", "sse4"):
            machine = MACHINES[name]
            if available.issuperset(machine.features):
                extras = [feature for feature in _AVX512_EXTRAS if name == "avx512" and feature in available]
                return dataclasses.replace(machine, features=(*machine.features, *extras), triple=_triple("x86_64"))
        return dataclasses.replace(MACHINES["sse2"], triple=_triple("x86_64"))

    @staticmethod
    def for_name(name: str) -> Machine:
        """``native`` for this computer, or one of :data:`MACHINES`. Raises UnsupportedError for any other name."""
        if name == "native":
            return Machine.host()
        if name not in MACHINES:
            known = ", ".join(["native", *MACHINES])
            raise UnsupportedError(f"CPU target: '{name}' is not a known instruction set; use one of {known}")
        return MACHINES[name]


def _x86(name: str, lanes: int, registers: int, tile: tuple[int, int], features: tuple[str, ...]) -> Machine:
    return Machine(name, "x86_64-unknown-linux-gnu", "x86-64", lanes, registers, *tile, features)


MACHINES = {
    "sse2": _x86("sse2", 4, 16, (4, 8), ()),
    "sse4": _x86("sse4", 4, 16, (4, 8), _SSE4),
    "avx2": _x86("avx2", 8, 16, (6, 16), _AVX2),
    "avx512": _x86("avx512", 16, 32, (12, 32), _AVX512),
    "avx512vnni": _x86("avx512vnni", 16, 32, (12, 32), (*_AVX512, "avx512vnni")),
    "avx512bf16": _x86("avx512bf16", 16, 32, (12, 32), (*_AVX512, "avx512vnni", "avx512bf16")),
    "neon": Machine("neon", "aarch64-unknown-linux-gnu", "generic", 4, 32, 8, 8, ("neon",)),
}


def _triple(architecture: str) -> str:
    system = {"Linux": "unknown-linux-gnu", "Darwin": "apple-darwin", "Windows": "pc-windows-msvc"}
    return f"{architecture}-{system.get(platform.system(), 'unknown-linux-gnu')}"


@functools.cache
def host_features() -> frozenset[str]:
    """Features of this processor in LLVM's names. Outside Linux, those of LLVM's guess of the processor model."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return frozenset(_LINUX_FLAGS.get(flag, flag) for flag in value.split())
    import tvm
    from tvm.target import codegen

    processor = codegen.llvm_get_system_cpu()
    return frozenset(codegen.llvm_get_cpu_features(tvm.target.Target({"kind": "llvm", "mcpu": processor})))
