"""Tensor memory of Blackwell (tcgen05): its allocation, products whose sums lie in it, and copies to and from it."""

from __future__ import annotations

from re import Match

from moec.common.errors import UnsupportedError
from moec.simulators.cuda.assembly.instructions import Effect, Operand, addresses, braced, model

_GROUP = r"\.cta_group::([12])"


@model(rf"tcgen05\.alloc{_GROUP}\.sync\.aligned(?:\.shared::cta)?\.b32", Effect.MEMORY)
def _allocate(match: Match[str], address: str, columns: str) -> str:
    return f"emulator::allocate_tensor_memory({match[1]}, {address}, {columns})"


@model(rf"tcgen05\.dealloc{_GROUP}\.sync\.aligned\.b32", Effect.MEMORY)
def _free(match: Match[str], address: str, columns: str) -> str:
    return f"emulator::free_tensor_memory({match[1]}, {address}, {columns})"


@model(rf"tcgen05\.relinquish_alloc_permit{_GROUP}\.sync\.aligned", Effect.MEMORY)
def _give_up_allocating(match: Match[str]) -> str:
    return f"emulator::give_up_allocating({match[1]})"


@model(rf"tcgen05\.mma{_GROUP}\.kind::(f16|tf32|f8f6f4)", Effect.ORDER)
def _multiply(match: Match[str], sums: str, a: str, b: str, instruction: str, *rest: Operand) -> str:
    disabled, *others = rest if isinstance(rest[0], list) else (["0"], *rest)
    if len(others) != 1:
        raise UnsupportedError(
            f"PTX instruction {match[0]} with {', '.join(map(str, others))}: the CUDA emulator has no model of scaled "
            "sums; expected a predicate as the last operand; run this kernel on a GPU"
        )
    kind = f"emulator::TensorKind::{match[2]}, {match[1]}"
    lanes = " | ".join(map(str, disabled))
    return f"emulator::multiply_in_tensor_memory({kind}, {sums}, {a}, {b}, {instruction}, {lanes}, {others[0]})"


@model(
    rf"tcgen05\.mma{_GROUP}\.kind::(?:mxf8f6f4\.block_scale\.scale_vec::(1)X|mxf4\.block_scale\.scale_vec::(2)X|"
    r"mxf4nvf4\.block_scale\.scale_vec::([24])X)",
    Effect.ORDER,
)
def _multiply_with_scales(
    match: Match[str], sums: str, a: str, b: str, instruction: str, scales_of_a: str, scales_of_b: str, adds: str
) -> str:
    count = match[2] or match[3] or match[4]
    operands = f"{sums}, {a}, {b}, {instruction}, {scales_of_a}, {scales_of_b}, {adds}"
    return f"emulator::multiply_with_scales({count}, {match[1]}, {operands})"


@model(rf"tcgen05\.cp{_GROUP}\.32x128b\.warpx4", Effect.ORDER)
def _copy_scales(match: Match[str], address: str, source: str) -> str:
    return f"emulator::copy_scales({match[1]}, {address}, {source})"


@model(rf"tcgen05\.commit{_GROUP}\.mbarrier::arrive::one\.shared::cluster\.b64", Effect.MEMORY)
def _commit(match: Match[str], barrier: str) -> str:
    return f"emulator::commit_tensor_work({match[1]}, {barrier})"


@model(rf"tcgen05\.commit{_GROUP}\.mbarrier::arrive::one\.shared::cluster\.multicast::cluster\.b64", Effect.MEMORY)
def _commit_to_several(match: Match[str], barrier: str, blocks: str) -> str:
    return f"emulator::commit_tensor_work_to({match[1]}, {barrier}, {blocks})"


@model(r"tcgen05\.ld\.sync\.aligned\.(32x32|16x256)b\.x\d+\.b32", Effect.ORDER)
def _load(match: Match[str], registers: Operand, address: str) -> str:
    lanes = match[1].partition("x")[0]
    return f"emulator::load_tensor_memory<{lanes}>(std::array{addresses(_listed(registers))}, {address})"


@model(r"tcgen05\.st\.sync\.aligned\.32x32b\.x(\d+)\.b32", Effect.ORDER)
def _store(match: Match[str], address: str, registers: Operand) -> str:
    return f"emulator::store_tensor_memory<32>({address}, std::array<uint32_t, {match[1]}>{braced(_listed(registers))})"


@model(r"tcgen05\.wait::(ld|st)\.sync\.aligned", Effect.MEMORY)
def _wait(match: Match[str]) -> str:
    return f"emulator::wait_for_tensor_{'loads' if match[1] == 'ld' else 'stores'}()"


@model(r"tcgen05\.fence::(before|after)_thread_sync", Effect.MEMORY)
def _fence(match: Match[str]) -> str:
    return f"emulator::fence_tensor_memory_{match[1]}_sync()"


def _listed(registers: Operand) -> list[Operand]:
    """The registers, of which a single one may be written without braces."""
    return registers if isinstance(registers, list) else [registers]
