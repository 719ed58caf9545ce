"""The mapping of a design's AXI masters to ports of the external memory, and the pace of a port.

Without a mapping the linker connects all masters to one port (UG1393, Mapping Kernel Ports to Memory), where they wait
for each other. A project has the mapping in its ``link.cfg``; the timed simulation reads it from there.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

from moec.targets.hls.design.attention import AttentionShape
from moec.targets.hls.design.experts import Design
from moec.targets.hls.design.numbers import BEAT_BYTES
from moec.targets.hls.design.striping import stripe_names
from moec.targets.hls.hardware.cycles import MemoryPace
from moec.targets.hls.hardware.parts import ExternalMemory, FpgaPart

UP, DOWN, TURNS = "gmem_up", "gmem_down", "gmem_turns"
ATTENTION_MASTERS = (UP, DOWN, "gmem_keys", "gmem_values", "gmem_results", "gmem_tokens", TURNS)
MOE_MASTERS = (UP, DOWN, "gmem_results", "gmem_tokens", "gmem_residual")
"""The AXI bundles of the top function, from busy to idle. Some exist only if the block has a cache, rotates keys by
their positions, or adds its tokens at the end."""
MEMORY_LATENCY = 64
"""The latency in cycles that the INTERFACE pragmas declare."""


@dataclasses.dataclass(frozen=True)
class Ports:
    """Ports in use. ``of``: port by bundle. A port delivers a beat every ``cycles_per_beat`` cycles of the design, at
    most one per cycle; all ports together deliver one every ``total_cycles_per_beat``."""

    of: Mapping[str, str]
    cycles_per_beat: float
    total_cycles_per_beat: float

    @property
    def loaders(self) -> MemoryPace:
        """The pace of each loader of weights while the loaders of both products are busy and all other masters idle."""
        busy = collections.Counter(port for master, port in self.of.items() if master.startswith((UP, DOWN)))
        pace = max(max(busy.values()) * self.cycles_per_beat, len(busy) * self.total_cycles_per_beat)
        return MemoryPace(max(1.0, pace), MEMORY_LATENCY)

    @property
    def caches(self) -> int:
        """The number of caches that share a port: 2 if keys and values come through the same one, else 1."""
        return 2 if "gmem_keys" in self.of and self.of["gmem_keys"] == self.of["gmem_values"] else 1

    @property
    def share(self) -> float:
        """Beats per cycle of one port."""
        return 1 / self.cycles_per_beat

    @property
    def total_share(self) -> float | None:
        """Beats per cycle of all ports together; None where the ports in use cannot exceed the memory's bandwidth."""
        asked = len(set(self.of.values())) / self.cycles_per_beat
        return None if asked <= 1 / self.total_cycles_per_beat else 1 / self.total_cycles_per_beat


def masters_of(design: Design) -> tuple[str, ...]:
    """The masters of a MoE block. A residual stream is read through a master of its own."""
    weights = (*stripe_names(UP, design.masters_up), *stripe_names(DOWN, design.masters_down))
    others = MOE_MASTERS[2:]
    return (*weights, *(others if design.shape.norm != "none" else others[:-1]))


def attention_masters(shape: AttentionShape) -> tuple[str, ...]:
    up, down, keys, values, *streams, turns = ATTENTION_MASTERS
    return (up, down, *((keys, values) if shape.cached else ()), *streams, *((turns,) if shape.turned else ()))


def connect(
    part: FpgaPart,
    masters: Sequence[str],
    clock_megahertz: float,
    memory_share: float = 1.0,
    of: Mapping[str, str] | None = None,
) -> Ports:
    """Connect ``masters``, bundles from busy to idle, to the ports of a part. ``memory_share``: the usable part of the
    peak bandwidth, of each port and of all together. ``of``: port by bundle, to override the default mapping.

    Raises ValueError for a share that is not above 0 and at most 1.
    """
    if not 0 < memory_share <= 1:
        raise ValueError(f"memory share {memory_share}; expected more than 0, up to 1")
    beats = BEAT_BYTES * clock_megahertz * 1e6 / memory_share
    return Ports(
        of=port_names(part.memory, masters) if of is None else of,
        cycles_per_beat=max(1.0, beats / part.memory.port_bytes_per_second(clock_megahertz)),
        total_cycles_per_beat=beats / (part.memory.gigabytes_per_second * 1e9),
    )


def port_names(memory: ExternalMemory, masters: Sequence[str]) -> dict[str, str]:
    """The port of each master. The busiest have one each; the rest share the last one."""
    return {master: memory.port_name.format(min(place, memory.ports - 1)) for place, master in enumerate(masters)}


def model_ports(
    memory: ExternalMemory, attention: AttentionShape | None = None, experts: Design | None = None
) -> dict[str, str]:
    """The port of each master of a whole model. Masters of streams read and write the same buffer, so they share a
    port: XRT treats each port as a memory of its own, even where all lead to one DDR, and copies a buffer for an
    argument at another port."""
    up, down, *streams = MOE_MASTERS
    weights = (up, down) if experts is None else masters_of(experts)[: experts.masters_up + experts.masters_down]
    caches = (
        () if attention is None else [master for master in attention_masters(attention) if master not in MOE_MASTERS]
    )
    # Caches and rotary embeddings are read at the same time, streams before and after that.
    first = len(weights)
    places = [min(first + place, memory.ports - 2) for place in range(len(caches))]
    if caches and caches[-1] == TURNS:
        places[-1] = min(first - 1 + len(caches), memory.ports - 1)
    last = memory.port_name.format(min(first + len(caches), memory.ports - 1))
    names = {master: memory.port_name.format(place) for master, place in zip(caches, places, strict=True)}
    ports = {**port_names(memory, weights), **names}
    return {**ports, **dict.fromkeys(streams, last)}
