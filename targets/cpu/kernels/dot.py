"""Dot instructions: products of short runs of narrow numbers, summed into 32-bit lanes.

An operand is a vector of 32-bit words, one per lane, each word holding four bytes or two bfloat16. The weights' vector
holds ``lanes`` columns; the activations' word is broadcast to all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.script import tirx as T

from moec.targets.cpu.hardware.machine import Machine

Dot = Callable[[Any, Any, Any], Any]
"""``(sums, weights, activations) -> sums``, vectors of ``machine.lanes`` 32-bit lanes."""


def byte_words(buffer: Any, indices: Sequence[Any], lanes: int) -> Any:
    """``lanes`` words of four bytes; ``indices`` is the place of the first byte."""
    elements = buffer[(*indices[:-1], T.ramp(indices[-1], 1, 4 * lanes))]
    return T.reinterpret(_vector("int32", lanes), elements)


def _vector(dtype: str, lanes: int) -> str:
    return f"{dtype}x{lanes}" if lanes > 1 else dtype


def byte_dot(machine: Machine) -> Dot:
    """Unsigned bytes of weights times signed bytes of activations, exact in int32.

    vpdpbusd where the processor has it, usdot on Arm with i8mm, two sdot on Arm with dotprod; else multiplications of
    16-bit halves (x86) or 32-bit numbers, which are as exact.
    """
    lanes = machine.lanes
    instruction = _byte_dot_instruction(machine)
    if instruction is not None:
        return lambda *operands: _dot(instruction, lanes, *operands)
    if "dotprod" in machine.features:
        return lambda sums, weights, activations: _signed_dot(lanes, sums, weights, activations)
    multiply_add = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}
    if machine.is_x86:
        return lambda sums, weights, activations: _halves_dot(multiply_add[lanes], lanes, sums, weights, activations)
    return lambda sums, weights, activations: _number_dot(lanes, sums, weights, activations)


def _byte_dot_instruction(machine: Machine) -> str | None:
    features = machine.features
    if machine.lanes == 16 and "avx512vnni" in features:
        return "llvm.x86.avx512.vpdpbusd.512"
    if machine.lanes == 8 and "avxvnni" in features:
        return "llvm.x86.avx512.vpdpbusd.256"
    return "llvm.aarch64.neon.usdot" if "i8mm" in features else None


def _dot(instruction: str, lanes: int, sums: Any, weights: Any, activations: Any) -> Any:
    bytes_type = f"int8x{4 * lanes}"
    operands = T.reinterpret(bytes_type, weights), T.reinterpret(bytes_type, activations)
    return T.call_llvm_pure_intrin(f"int32x{lanes}", instruction, sums, *operands)


def _signed_dot(lanes: int, sums: Any, weights: Any, activations: Any) -> Any:
    """Signed bytes hold up to 127, so the highest bit of every weight is multiplied by itself and counts 128."""

    def all_lanes(number: int) -> Any:
        return T.broadcast(T.int32(number), lanes)

    instruction = "llvm.aarch64.neon.sdot"
    low, high = weights & all_lanes(0x7F7F7F7F), (weights >> all_lanes(7)) & all_lanes(0x01010101)
    highest = _dot(instruction, lanes, all_lanes(0), high, activations)
    return _dot(instruction, lanes, sums, low, activations) + (highest << all_lanes(7))


def _halves_dot(instruction: str, lanes: int, sums: Any, weights: Any, activations: Any) -> Any:
    """Even and odd bytes as 16-bit numbers, which pmaddwd multiplies and adds in pairs without rounding."""
    half = f"int16x{2 * lanes}"

    def all_lanes(number: int) -> Any:
        return T.broadcast(T.int16(number), 2 * lanes)

    wide, signed = T.reinterpret(half, weights), T.reinterpret(half, activations)
    byte_bits = all_lanes(8)
    even = wide & all_lanes(255), (signed << byte_bits) >> byte_bits
    odd = (wide >> byte_bits) & all_lanes(255), signed >> byte_bits
    for weight, activation in (even, odd):
        sums = sums + T.call_llvm_pure_intrin(f"int32x{lanes}", instruction, weight, activation)
    return sums


def _number_dot(lanes: int, sums: Any, weights: Any, activations: Any) -> Any:
    def all_lanes(number: int) -> Any:
        return T.broadcast(T.int32(number), lanes)

    for position in range(4):
        weight = (weights >> all_lanes(8 * position)) & all_lanes(255)
        activation = (activations << all_lanes(24 - 8 * position)) >> all_lanes(24)
        sums = sums + weight * activation
    return sums


def pair_dot(machine: Machine) -> Dot:
    """Pairs of bfloat16, summed in float32: vdpbf16ps where the processor has it, else two multiply-adds.

    The instruction flushes denormals and does not round between its two products; the results differ in rounding.
    A kernel that uses it imports :func:`pair_functions`.
    """
    lanes = machine.lanes
    if _has_pair_dot(machine):
        return lambda *operands: T.call_pure_extern(f"float32x{lanes}", "moec_pair_dot", *operands)

    def multiply_adds(sums: Any, weights: Any, activations: Any) -> Any:
        for weight, activation in zip(pair_floats(weights, lanes), pair_floats(activations, lanes), strict=True):
            sums = sums + weight * activation
        return sums

    return multiply_adds


def _has_pair_dot(machine: Machine) -> bool:
    return machine.lanes == 16 and "avx512bf16" in machine.features


def pair_functions(machine: Machine) -> str:
    """LLVM functions for pairs of bfloat16, which TVM itself would widen: loads of words, and the dot instruction."""
    loads = "".join(_LOAD_WORDS.replace("WORDS", str(count)).replace("TYPE", kind) for count, kind in _types(machine))
    return loads + (_PAIR_DOT if _has_pair_dot(machine) else "")


def _types(machine: Machine) -> list[tuple[int, str]]:
    return [(1, "i32"), (machine.lanes, f"<{machine.lanes} x i32>")]


_LOAD_WORDS = """
define internal TYPE @moec_load_WORDS_words(ptr %address) alwaysinline {
  %words = load TYPE, ptr %address, align 4
  ret TYPE %words
}
"""
_PAIR_DOT = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
define internal <16 x float> @moec_pair_dot(<16 x float> %sums, <16 x i32> %a, <16 x i32> %b) alwaysinline {
  %left = bitcast <16 x i32> %a to <32 x bfloat>
  %right = bitcast <16 x i32> %b to <32 x bfloat>
  %result = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(
      <16 x float> %sums, <32 x bfloat> %left, <32 x bfloat> %right)
  ret <16 x float> %result
}
"""


def pair_words(buffer: Any, indices: Sequence[Any], lanes: int) -> Any:
    """``lanes`` pairs of bfloat16 as words; ``indices`` is the place of the first."""
    return T.call_pure_extern(_vector("int32", lanes), f"moec_load_{lanes}_words", T.address_of(buffer[tuple(indices)]))


def pair_floats(pairs: Any, lanes: int) -> tuple[Any, Any]:
    """The two bfloat16 of each word as float32: its upper half is the number, its lower half zero."""

    def all_lanes(number: int) -> Any:
        return T.broadcast(T.int32(number), lanes)

    floats = _vector("float32", lanes)
    return T.reinterpret(floats, pairs << all_lanes(16)), T.reinterpret(floats, pairs & all_lanes(-65536))
