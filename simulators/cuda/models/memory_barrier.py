"""Barriers in shared memory."""

from __future__ import annotations

from re import Match

from moec.simulators.cuda.assembly.instructions import Effect, Operand, model

_SCOPE = r"(?:\.(?:release|acquire|relaxed))?(?:\.(?:cta|cluster))?"
_SHARED = r"\.shared(?:::cta|::cluster)?\.b64"


@model(rf"mbarrier\.init{_SHARED}", Effect.MEMORY)
def _initialise(match: Match[str], address: str, count: str) -> str:
    return f"emulator::initialise_barrier({address}, {count})"


@model(rf"mbarrier\.inval{_SHARED}", Effect.MEMORY)
def _invalidate(match: Match[str], address: str) -> str:
    return f"emulator::invalidate_barrier({address})"


@model(rf"mbarrier\.arrive{_SCOPE}{_SHARED}", Effect.MEMORY)
def _arrive(match: Match[str], phase: str, address: str, count: str = "1") -> str:
    if _in_cluster(match, phase):
        return f"emulator::arrive_in_cluster({address}, {count})"
    return _given(phase, f"emulator::arrive_at_memory_barrier(*emulator::thread, {address}, {count})")


@model(rf"mbarrier\.arrive\.expect_tx{_SCOPE}{_SHARED}", Effect.MEMORY)
def _arrive_with_bytes(match: Match[str], phase: str, address: str, count: str) -> str:
    if _in_cluster(match, phase):
        return f"emulator::arrive_in_cluster({address}, 1, {count})"
    return _given(phase, f"emulator::arrive_at_memory_barrier(*emulator::thread, {address}, 1, {count})")


@model(rf"mbarrier\.expect_tx{_SCOPE}{_SHARED}", Effect.MEMORY)
def _expect_bytes(match: Match[str], address: str, count: str) -> str:
    return f"emulator::expect_bytes({address}, {count})"


@model(rf"mbarrier\.complete_tx{_SCOPE}{_SHARED}", Effect.MEMORY)
def _complete_bytes(match: Match[str], address: str, count: str) -> str:
    return f"emulator::complete_bytes({address}, {count})"


@model(rf"mbarrier\.(try_wait|test_wait)(?:\.parity)?{_SCOPE}{_SHARED}", Effect.MEMORY)
def _wait(match: Match[str], done: str, address: str, phase: str, ticks: str = "") -> str:
    """Model both forms of a wait: a phase is identified by its parity, which is also the state that an arrival
    returns."""
    function = "wait_for_phase" if match[1] == "try_wait" else "test_phase"
    return f"{done} = emulator::{function}({address}, uint32_t({phase}))"


@model(r"cp\.async\.mbarrier\.arrive(\.noinc)?\.shared(?:::cta)?\.b64", Effect.MEMORY)
def _arrive_after_copies(match: Match[str], address: str) -> str:
    return f"emulator::arrive_after_copies({address}, {'true' if match[1] else 'false'})"


@model(r"fence\.mbarrier_init\.release\.cluster", Effect.MEMORY)
def _publish(match: Match[str], *operands: Operand) -> str:
    return "emulator::publish_barriers()"


def _in_cluster(match: Match[str], phase: str) -> bool:
    """Whether the barrier may belong to another block; such an arrival returns no phase."""
    return "::cluster" in match[0] and phase == "_"


def _given(result: str, call: str) -> str:
    return call if result == "_" else f"{result} = {call}"
