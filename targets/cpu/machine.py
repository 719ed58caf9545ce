"""The processor that kernels are generated for: vector width, registers, features, and the LLVM target that says so."""

from __future__ import annotations

import dataclasses
import functools
import platform
from collections.abc import Sequence
from typing import Any

from moec.errors import UnsupportedError
from moec.runtime.machine import cpu_features, missing_features
from moec.runtime.matrix_tiles import refusal_of_matrix_tiles

_SSE4 = ("sse3", "ssse3", "sse4.1", "sse4.2", "popcnt")
_AVX2 = (*_SSE4, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
MATRIX_TILES = ("amx-tile", "amx-bf16", "amx-int8")
"""Features that code uses only where a kernel asks for them: LLVM never chooses these instructions by itself."""
_EXTRAS = {
    "avx512": ("avx512vnni", "avx512bf16", "avx512fp16", *MATRIX_TILES),
    "avx2": ("avxvnni",),
    "neon": ("dotprod", "i8mm", "bf16", "fullfp16"),
}
"""Features that kernels use where a processor of the instruction set has them."""


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
    def is_x86(self) -> bool:
        return self.triple.startswith("x86_64")

    @property
    def byte_shuffle(self) -> str:
        """LLVM's name of the instruction that looks bytes up in a table of 16, in every 16 bytes of a register."""
        x86 = {4: "llvm.x86.ssse3.pshuf.b.128", 8: "llvm.x86.avx2.pshuf.b", 16: "llvm.x86.avx512.pshuf.b.512"}
        return x86[self.lanes] if self.is_x86 else "llvm.aarch64.neon.tbl1"

    @property
    def llvm(self) -> dict[str, Any]:
        """The TVM target. The features decide which instructions are used; the processor is only the baseline that
        they extend, because the model that a virtual machine reports is often wrong."""
        attributes = [f"+{feature}" for feature in self.features]
        return {"kind": "llvm", "mtriple": self.triple, "mcpu": self.processor, "mattr": attributes}

    @property
    def requirements(self) -> tuple[str, ...]:
        """The features that any code for this machine may use, whatever kernels are in it."""
        return tuple(feature for feature in self.features if feature not in MATRIX_TILES)

    @staticmethod
    def host() -> Machine:
        """The widest machine that this processor can run, with the extras it has.

        Raises UnsupportedError for a processor older than any of them."""
        is_arm = platform.machine() in ("aarch64", "arm64")
        for name in ("neon",) if is_arm else ("avx512", "avx2", "sse4"):
            machine = MACHINES[name]
            if host_has(machine.features):
                extras = [feature for feature in _EXTRAS.get(name, ()) if host_has([feature])]
                features = (*machine.features, *extras)
                return dataclasses.replace(
                    machine, features=features, triple=_triple("aarch64" if is_arm else "x86_64")
                )
        raise UnsupportedError(
            f"CPU target: this {platform.machine()} processor has neither SSE4.2 nor NEON; name the instruction set to "
            f"compile for, e.g. cpu:avx2 (known: {', '.join(MACHINES)})"
        )

    @staticmethod
    def for_name(name: str) -> Machine:
        """``native`` for this computer, or one of :data:`MACHINES`. Raises UnsupportedError for any other name."""
        if name == "native":
            return Machine.host()
        if name not in MACHINES:
            known = ", ".join(["native", *MACHINES])
            raise UnsupportedError(f"CPU target: '{name}' is not a known instruction set; use one of {known}")
        return MACHINES[name]


def _arm(name: str, *extras: str) -> Machine:
    return Machine(name, "aarch64-unknown-linux-gnu", "generic", 4, 32, 8, 8, ("neon", *extras))


def _x86(name: str, lanes: int, registers: int, tile: tuple[int, int], features: tuple[str, ...]) -> Machine:
    return Machine(name, "x86_64-unknown-linux-gnu", "x86-64", lanes, registers, *tile, features)


MACHINES = {
    "sse4": _x86("sse4", 4, 16, (4, 8), _SSE4),
    "avx2": _x86("avx2", 8, 16, (6, 16), _AVX2),
    "avx2vnni": _x86("avx2vnni", 8, 16, (6, 16), (*_AVX2, "avxvnni")),
    "avx512": _x86("avx512", 16, 32, (12, 32), _AVX512),
    "avx512vnni": _x86("avx512vnni", 16, 32, (12, 32), (*_AVX512, "avx512vnni")),
    "avx512bf16": _x86("avx512bf16", 16, 32, (12, 32), (*_AVX512, "avx512vnni", "avx512bf16")),
    "amx": _x86("amx", 16, 32, (12, 32), (*_AVX512, "avx512vnni", "avx512bf16", *MATRIX_TILES)),
    "neon": _arm("neon"),
    "neondotprod": _arm("neondotprod", "dotprod"),
    "neoni8mm": _arm("neoni8mm", "dotprod", "i8mm"),
}


def _triple(architecture: str) -> str:
    system = {"Linux": "unknown-linux-gnu", "Darwin": "apple-darwin", "Windows": "pc-windows-msvc"}
    return f"{architecture}-{system.get(platform.system(), 'unknown-linux-gnu')}"


def host_has(features: Sequence[str]) -> bool:
    """Whether this processor has the features. Outside Linux, whether LLVM's guess of the processor model has them.

    Matrix tiles count only where the system permits them; then this process may use them from here on.
    """
    if not set(features).isdisjoint(MATRIX_TILES) and refusal_of_matrix_tiles() is not None:
        return False
    if cpu_features():
        return not missing_features(list(features))
    return _guessed_features().issuperset(features)


@functools.cache
def _guessed_features() -> frozenset[str]:
    import tvm
    from tvm.target import codegen

    processor = codegen.llvm_get_system_cpu()
    return frozenset(codegen.llvm_get_cpu_features(tvm.target.Target({"kind": "llvm", "mcpu": processor})))


def tile_of(machine: Machine) -> str:
    """The register tile of matrix products, for reasons."""
    return f"register tile of {machine.row_tile} rows x {machine.column_tile} columns ({machine.name})"
