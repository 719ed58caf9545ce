"""Products of a warp group."""

from __future__ import annotations

from re import Match

from moec.common.errors import UnsupportedError
from moec.simulators.cuda.assembly.instructions import Effect, Operand, addresses, braced, model

_FORMATS = {
    "f16": ("Float16", "16"),
    "bf16": ("BFloat16", "16"),
    "tf32": ("TensorFloat32", "8"),
    "e4m3": ("Float8E4M3", "32"),
}


@model(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k(\d+)\.f32\.(f16|bf16|tf32|e4m3)\.\3", Effect.ORDER)
def _multiply(match: Match[str], sums: Operand, a: Operand, b: str, adds: str, *scales_and_orders: str) -> str:
    columns, depth, name = match.groups()
    cpp_format, only_depth = _FORMATS[name]
    orders = scales_and_orders[2:]
    if depth != only_depth or scales_and_orders[:2] != ("1", "1") or "1" in orders[:-1]:
        raise UnsupportedError(
            f"PTX instruction {match[0]} with {', '.join(scales_and_orders)}: the CUDA emulator has no model of "
            f"negated operands and of a transposed A; expected 1, 1, 0, 0 or 1 and k{only_depth}; run this kernel on a "
            "GPU"
        )
    types = f"emulator::{cpp_format}, {depth}, {columns}, {'true' if '1' in orders else 'false'}"
    if isinstance(a, list):
        return f"emulator::wgmma<{types}>({addresses(sums)}, std::array<uint32_t, 4>{braced(a)}, {b}, {adds})"
    return f"emulator::wgmma<{types}>({addresses(sums)}, {a}, {b}, {adds})"


@model(r"wgmma\.fence\.sync\.aligned", Effect.MEMORY)
def _fence(match: Match[str]) -> str:
    return "emulator::fence_products()"


@model(r"wgmma\.commit_group\.sync\.aligned", Effect.ORDER)
def _commit(match: Match[str]) -> str:
    return "emulator::commit_products()"


@model(r"wgmma\.wait_group\.sync\.aligned", Effect.MEMORY)
def _wait(match: Match[str], allowed: str) -> str:
    return f"emulator::wait_for_products({allowed})"


@model(r"setmaxnreg\.(inc|dec)\.sync\.aligned\.u32", Effect.ORDER)
def _set_registers(match: Match[str], count: str) -> str:
    function = {"inc": "take_more_registers", "dec": "give_registers_back"}[match[1]]
    return f"emulator::{function}({count})"
