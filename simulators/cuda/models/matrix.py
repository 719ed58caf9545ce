"""Instructions of a warp's tensor cores."""

from __future__ import annotations

from re import Match

from moec.simulators.cuda.assembly.instructions import Effect, Operand, addresses, braced, model

_FORMATS = {
    "f16": "Float16",
    "bf16": "BFloat16",
    "tf32": "TensorFloat32",
    "e4m3": "Float8E4M3",
    "s8": "Int8",
    "u8": "UInt8",
}


@model(r"mma\.sync\.aligned\.m16n8k(\d+)\.row\.col\.(?:f32\.(f16|bf16|tf32|e4m3)\.\2\.f32|s32\.(s8|u8)\.\3\.s32)")
def _multiply(match: Match[str], d: Operand, a: Operand, b: Operand, c: Operand) -> str:
    name = _FORMATS[match[2] or match[3]]
    argument = f"{{{addresses(d)}, {braced(a)}, {braced(b)}, {braced(c)}}}"
    return f"emulator::mma<emulator::{name}, {match[1]}>({argument})"


@model(r"ldmatrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared(?:::cta)?\.b16", Effect.MEMORY)
def _load_tiles(match: Match[str], registers: Operand, address: str) -> str:
    transposed = "true" if match[2] else "false"
    return f"emulator::ldmatrix<{match[1]}, {transposed}>({addresses(registers)}, {address})"


@model(r"stmatrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared(?:::cta)?\.b16", Effect.MEMORY)
def _store_tiles(match: Match[str], address: str, registers: Operand) -> str:
    transposed = "true" if match[2] else "false"
    return f"emulator::stmatrix<{match[1]}, {transposed}>({address}, {braced(registers)})"


@model(r"cvt\.rna\.tf32\.f32")
def _round_to_tf32(match: Match[str], result: str, value: str) -> str:
    return f"{result} = emulator::rounded_to_tf32({value})"


@model(r"cvt\.rn\.f16x2\.e4m3x2")
def _decode_pair(match: Match[str], result: str, value: str) -> str:
    return f"{result} = emulator::e4m3_pair_to_halves({value})"
