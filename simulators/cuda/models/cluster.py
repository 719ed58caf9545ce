"""Instructions of clusters: their barriers, and addresses in the shared memory of other blocks."""

from __future__ import annotations

from re import Match

from moec.simulators.cuda.assembly.instructions import Effect, model


@model(r"mapa(?:\.shared::cluster)?\.u32")
def _map(match: Match[str], result: str, address: str, rank: str) -> str:
    return f"{result} = emulator::map_into({address}, {rank})"


@model(r"barrier\.cluster\.arrive(\.release|\.relaxed)?(?:\.aligned)?", Effect.MEMORY)
def _arrive(match: Match[str]) -> str:
    return f"emulator::arrive_at_cluster_barrier({'false' if match[1] == '.relaxed' else 'true'})"


@model(r"barrier\.cluster\.wait(?:\.acquire)?(?:\.aligned)?", Effect.MEMORY)
def _wait(match: Match[str]) -> str:
    return "emulator::wait_at_cluster_barrier()"
