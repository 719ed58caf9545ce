"""Nothing but multiply-adds: how fast each kind of instruction of a processor can go.

The kernel runs one loop of inline assembly per thread: independent sums in registers, as many as there are, so that
the latency of the instruction is hidden, and no memory. Assembly, because a compiler would see that the results are of
no use.
"""

from __future__ import annotations

import dataclasses

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cpu.hardware.machine import Machine


@dataclasses.dataclass(frozen=True)
class RegisterKind:
    """``count`` registers of a kind: all but the last two sum, those are the factors. ``{i}`` in ``clear`` is the
    number of the register to be cleared: odd numbers left in it could be slow to compute with."""

    name: str
    count: int
    clear: str


@dataclasses.dataclass(frozen=True)
class MultiplyAdd:
    """One kind of multiply-add. ``{i}`` in ``text`` is the number of the register that sums; ``operations`` of one."""

    arithmetic: str
    unit: str
    feature: str
    registers: RegisterKind
    text: str
    operations: int


_XMM = RegisterKind("xmm", 16, "xorps %xmm{i}, %xmm{i}")
_YMM = RegisterKind("ymm", 16, "vxorps %ymm{i}, %ymm{i}, %ymm{i}")
_ZMM = RegisterKind("zmm", 32, "vpxorq %zmm{i}, %zmm{i}, %zmm{i}")
_TMM = RegisterKind("tmm", 8, "tilezero %tmm{i}")
_NEON = RegisterKind("v", 32, "movi v{i}.2d, #0")

_X86 = (
    MultiplyAdd("float32", "SSE", "", _XMM, "mulps %xmm15, %xmm{i}", 4),
    MultiplyAdd("float32", "AVX2", "fma", _YMM, "vfmadd231ps %ymm14, %ymm15, %ymm{i}", 16),
    MultiplyAdd("float32", "AVX-512", "avx512f", _ZMM, "vfmadd231ps %zmm30, %zmm31, %zmm{i}", 32),
    MultiplyAdd("bfloat16", "AVX-512", "avx512bf16", _ZMM, "vdpbf16ps %zmm30, %zmm31, %zmm{i}", 64),
    MultiplyAdd("bfloat16", "AMX", "amx-bf16", _TMM, "tdpbf16ps %tmm7, %tmm6, %tmm{i}", 16384),
    MultiplyAdd("int8", "AVX2", "avxvnni", _YMM, "{{vex}} vpdpbusd %ymm14, %ymm15, %ymm{i}", 64),
    MultiplyAdd("int8", "AVX-512", "avx512vnni", _ZMM, "vpdpbusd %zmm30, %zmm31, %zmm{i}", 128),
    MultiplyAdd("int8", "AMX", "amx-int8", _TMM, "tdpbssd %tmm7, %tmm6, %tmm{i}", 32768),
)
_AARCH64 = (
    MultiplyAdd("float32", "NEON", "", _NEON, "fmla v{i}.4s, v30.4s, v31.4s", 8),
    MultiplyAdd("bfloat16", "NEON", "bf16", _NEON, "bfmmla v{i}.4s, v30.8h, v31.8h", 32),
    MultiplyAdd("int8", "NEON dot", "dotprod", _NEON, "sdot v{i}.4s, v30.16b, v31.16b", 32),
    MultiplyAdd("int8", "NEON matrix", "i8mm", _NEON, "smmla v{i}.4s, v30.16b, v31.16b", 64),
)
_X86_AGAIN = ("decq $0", "jne 1b")
_AARCH64_AGAIN = ("subs $0, $0, #1", "b.ne 1b")

_FUNCTION = "peak_loop"
_LLVM = """
@tiles = private constant [64 x i8] c"{tiles}"
define i32 @{function}(i64 %count) {{
  %rest = call i64 asm sideeffect "{text}", "=r,0,r,{clobbers}"(i64 %count, ptr @tiles)
  ret i32 0
}}
"""
_TILES = bytes([1, *[0] * 15, *[64, 0] * 8, *[0] * 16, *[16] * 8, *[0] * 8])
"""Configuration of the AMX unit, palette 1: eight tiles of 64 bytes (16-bit numbers) by 16 rows (8-bit numbers)."""


def instructions(machine: Machine) -> list[MultiplyAdd]:
    """The instructions of the table that the machine has."""
    table = _AARCH64 if _is_aarch64(machine) else _X86
    return [instruction for instruction in table if not instruction.feature or instruction.feature in machine.features]


def operations_per_round(instruction: MultiplyAdd) -> int:
    """Operations of one round of :func:`peak` in one thread."""
    return instruction.operations * (instruction.registers.count - 2)


def peak(instruction: MultiplyAdd, machine: Machine) -> tirx.PrimFunc:
    """The kernel ``(rounds, threads)``: every thread runs ``rounds`` rounds, at least 1, of the instruction, once per
    accumulator register in each."""
    llvm = _llvm(instruction, machine)

    @T.prim_func(s_tir=True)
    def kernel(rounds: T.int64, threads: T.int64):
        T.attr(0, "pragma_import_llvm", llvm)
        for _ in T.parallel(threads):
            T.evaluate(T.call_extern("int32", _FUNCTION, rounds))

    return kernel


def _llvm(instruction: MultiplyAdd, machine: Machine) -> str:
    registers = instruction.registers
    numbers = range(registers.count)
    tiled = registers is _TMM
    lines = [
        *(["ldtilecfg ($2)"] if tiled else []),
        *(registers.clear.format(i=number) for number in numbers),
        "1:",
        *(instruction.text.format(i=number) for number in numbers[:-2]),
        *(_AARCH64_AGAIN if _is_aarch64(machine) else _X86_AGAIN),
        *(["tilerelease"] if tiled else []),
    ]
    clobbers = [f"~{{{registers.name}{number}}}" for number in numbers]
    clobbers.append("~{cc}" if _is_aarch64(machine) else "~{flags}")
    tiles = "".join(f"\\{byte:02x}" for byte in _TILES)
    return _LLVM.format(tiles=tiles, function=_FUNCTION, text="\\0A".join(lines), clobbers=",".join(clobbers))


def _is_aarch64(machine: Machine) -> bool:
    return machine.triple.startswith("aarch64")
