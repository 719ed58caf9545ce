"""Products of a warp's tensor cores whose operands have a scale for every 16 or 32 elements."""

from __future__ import annotations

from re import Match

from moec.simulators.cuda.assembly.instructions import Operand, addresses, braced, model

_SCALES = {"ue8m0": "ScaleUE8M0", "ue4m3": "ScaleUE4M3"}
_BYTES = {"e4m3": "Float8E4M3", "e2m1": "Float4E2M1InByte"}


@model(
    r"mma\.sync\.aligned\.m16n8k64\.row\.col\.kind::mxf4nvf4\.block_scale\.scale_vec::"
    r"(?:(4)X\.f32\.e2m1\.e2m1\.f32\.(ue4m3)|(2)X\.f32\.e2m1\.e2m1\.f32\.(ue8m0))"
)
def _multiply_four_bits(match: Match[str], *operands: Operand) -> str:
    chunks, scale = match[1] or match[3], match[2] or match[4]
    return _call(f"emulator::Float4E2M1, emulator::Float4E2M1, emulator::{_SCALES[scale]}, 64, {chunks}", *operands)


@model(
    r"mma\.sync\.aligned\.m16n8k32\.row\.col\.kind::mxf8f6f4\.block_scale\.scale_vec::1X"
    r"\.f32\.(e4m3|e2m1)\.(e4m3|e2m1)\.f32\.ue8m0"
)
def _multiply_eight_bits(match: Match[str], *operands: Operand) -> str:
    types = f"emulator::{_BYTES[match[1]]}, emulator::{_BYTES[match[2]]}, emulator::{_SCALES['ue8m0']}"
    return _call(f"{types}, 32, 1", *operands)


def _call(
    types: str, d: Operand, a: Operand, b: Operand, c: Operand, scale_a: Operand, of_a: Operand, scale_b: Operand,
    of_b: Operand,
) -> str:  # fmt: skip
    scales = f"{_scale(scale_a, of_a)}, {_scale(scale_b, of_b)}"
    return f"emulator::mma_scaled<{types}>({{{addresses(d)}, {braced(a)}, {braced(b)}, {braced(c)}, {scales}}})"


def _scale(register: Operand, selectors: Operand) -> str:
    (bytes_of,) = register if isinstance(register, list) else [register]
    byte, lane = selectors
    return f"{{{bytes_of}, int({byte}), int({lane})}}"
