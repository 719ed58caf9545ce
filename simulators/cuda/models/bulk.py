"""Bulk copies of the tensor memory accelerator."""

from __future__ import annotations

from re import Match

from moec.common.errors import UnsupportedError
from moec.simulators.cuda.assembly.instructions import Effect, Operand, braced, model

_LOAD = r"\.shared(?:::cluster|::cta)\.global"
_STORE = r"\.global\.shared::cta"
_COMPLETES = r"\.mbarrier::complete_tx::bytes"
_GROUP = r"(?:\.cta_group::([12]))?"
_HINT = r"(?:\.L2::cache_hint)?"
_TENSOR_LOAD = rf"cp\.async\.bulk\.tensor\.([1-5])d{_LOAD}(?:\.tile(::gather4)?)?{_COMPLETES}"


@model(rf"{_TENSOR_LOAD}{_GROUP}{_HINT}", Effect.MEMORY)
def _load_tensor(match: Match[str], destination: str, source: Operand, barrier: str, hint: str = "") -> str:
    return f"emulator::load_tensor({destination}, {_box(match, source)}, {barrier}, {_mode(match)})"


@model(rf"{_TENSOR_LOAD}\.multicast::cluster{_GROUP}{_HINT}", Effect.MEMORY)
def _multicast_tensor(
    match: Match[str], destination: str, source: Operand, barrier: str, blocks: str, hint: str = ""
) -> str:
    return f"emulator::multicast_tensor({destination}, {_box(match, source)}, {barrier}, {blocks}, {_mode(match)})"


def _box(match: Match[str], source: Operand) -> str:
    """A tensor map, its dimensions, and where its box begins."""
    tensor_map, start = source
    expected = 5 if match[2] else int(match[1])
    if len(start) != expected:
        raise UnsupportedError(
            f"PTX instruction {match[0]} with {len(start)} coordinates: the CUDA emulator has no model of it; expected "
            f"{expected}; write a model, or run this kernel on a GPU"
        )
    return f"(const void*)({tensor_map}), {match[1]}, {braced(start)}"


def _mode(match: Match[str]) -> str:
    return f"{{{'true' if match[2] else 'false'}, {'true' if match[3] == '2' else 'false'}}}"


@model(rf"cp\.async\.bulk\.tensor\.([1-5])d{_STORE}(?:\.tile)?\.bulk_group{_HINT}", Effect.MEMORY)
def _store_tensor(match: Match[str], destination: Operand, source: str, hint: str = "") -> str:
    tensor_map, start = destination
    return f"emulator::store_tensor((const void*)({tensor_map}), {match[1]}, {braced(start)}, {source})"


@model(rf"cp\.async\.bulk{_LOAD}{_COMPLETES}{_HINT}", Effect.MEMORY)
def _load_bytes(match: Match[str], destination: str, source: str, count: str, barrier: str, hint: str = "") -> str:
    return f"emulator::load_bytes({destination}, (const void*)({source}), {count}, {barrier})"


@model(rf"cp\.async\.bulk{_STORE}\.bulk_group{_HINT}", Effect.MEMORY)
def _store_bytes(match: Match[str], destination: str, source: str, count: str, hint: str = "") -> str:
    return f"emulator::store_bytes((void*)({destination}), {source}, {count})"


@model(r"cp\.async\.bulk\.commit_group", Effect.ORDER)
def _commit(match: Match[str]) -> str:
    return "emulator::commit_stores()"


@model(r"cp\.async\.bulk\.wait_group(?:\.read)?", Effect.MEMORY)
def _wait(match: Match[str], allowed: str) -> str:
    return f"emulator::wait_for_stores({allowed})"


@model(r"fence\.proxy\.tensormap\S*", Effect.MEMORY)
def _nothing_to_compute(match: Match[str], *operands: Operand) -> str:
    return ""
