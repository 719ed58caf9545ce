"""Asynchronous copies of single threads from global to shared memory."""

from __future__ import annotations

from re import Match

from moec.simulators.cuda.assembly.instructions import Effect, model


@model(r"cp\.async\.c[ag]\.shared(?:::cta)?\.global(?:\.L2::\d+B)?", Effect.MEMORY)
def _copy(match: Match[str], destination: str, source: str, count: str, read: str | None = None) -> str:
    return f"emulator::issue_copy({destination}, (const void*)({source}), {count}, {read or count})"


@model(r"cp\.async\.commit_group", Effect.ORDER)
def _commit(match: Match[str]) -> str:
    return "emulator::commit_copies()"


@model(r"cp\.async\.wait_group", Effect.MEMORY)
def _wait(match: Match[str], allowed: str) -> str:
    return f"emulator::wait_for_copies({allowed})"


@model(r"cp\.async\.wait_all", Effect.MEMORY)
def _wait_for_all(match: Match[str]) -> str:
    return "emulator::wait_for_all_copies()"


@model(r"fence\.proxy\.async(?:\.shared::cta|\.global)?", Effect.MEMORY)
def _fence(match: Match[str]) -> str:
    return "emulator::fence_for_asynchronous_proxy()"
