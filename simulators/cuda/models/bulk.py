"""Bulk copies of the tensor memory accelerator."""

from __future__ import annotations

from re import Match

from moec.simulators.cuda.assembly.instructions import Effect, Operand, braced, model

_LOAD = r"\.shared(?:::cluster|::cta)\.global"
_STORE = r"\.global\.shared::cta"
_COMPLETES = r"\.mbarrier::complete_tx::bytes"
_HINT = r"(?:\.L2::cache_hint)?"


@model(rf"cp\.async\.bulk\.tensor\.([1-5])d{_LOAD}(?:\.tile)?{_COMPLETES}{_HINT}", Effect.MEMORY)
def _load_tensor(match: Match[str], destination: str, source: Operand, barrier: str, hint: str = "") -> str:
    tensor_map, start = source
    return f"emulator::load_tensor({destination}, (const void*)({tensor_map}), {match[1]}, {braced(start)}, {barrier})"


@model(rf"cp\.async\.bulk\.tensor\.([1-5])d{_LOAD}(?:\.tile)?{_COMPLETES}\.multicast::cluster{_HINT}", Effect.MEMORY)
def _multicast_tensor(
    match: Match[str], destination: str, source: Operand, barrier: str, blocks: str, hint: str = ""
) -> str:
    tensor_map, start = source
    arguments = f"{destination}, (const void*)({tensor_map}), {match[1]}, {braced(start)}, {barrier}, {blocks}"
    return f"emulator::multicast_tensor({arguments})"


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
