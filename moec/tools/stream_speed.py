"""Prediction of the decoding speed of a model whose weights are larger than its memory, from the speeds of disk and
memory.

A token reads from memory the experts that it selects and all other weights, and from the disk those of its experts that
are not in memory. In a layer with known shares, the most often selected experts are in memory, as far as there is room;
otherwise every expert is there with the same probability. Experts that were expected are read while a layer computes,
which costs no time.
"""

from __future__ import annotations

import dataclasses
import mmap
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from moec import targets
from moec.common.errors import MoecError, UnsupportedError
from moec.runtime.artifact import Artifact
from moec.runtime.direct_reads import PAGE, DirectReads, PendingRead, read_now
from moec.runtime.machine import check_threads
from moec.runtime.manifest import WEIGHTS
from moec.runtime.reserved_memory import ReservedMemory
from moec.runtime.streaming import StreamPlan

GUESSED = 0.7
"""Share of the missing experts that were expected, where it was not measured; see benchmarks/results/streaming.md."""
DECODING = 0.45
"""Share of memory's bandwidth that decoding reaches."""
_MEASURED_BYTES, _MEASURED_SECONDS = 512 << 20, 2.0


@dataclasses.dataclass(frozen=True)
class StreamSpeed:
    """Bytes per token, measured bytes per second, and the resulting seconds per token. ``there``: share of the selected
    experts that is in memory."""

    there: float
    memory_bytes: float
    disk_bytes: float
    memory_bandwidth: float
    disk_bandwidth: float

    @property
    def seconds(self) -> float:
        computing = self.memory_bytes / (DECODING * self.memory_bandwidth)
        reading = self.disk_bytes / self.disk_bandwidth
        return computing + reading - GUESSED * min(computing, reading)

    def as_data(self) -> dict[str, Any]:
        """Convert to plain data, with the predicted ``tokens_per_second``."""
        return {**dataclasses.asdict(self), "predicted": True, "tokens_per_second": 1 / self.seconds}


def stream_plan(artifact: Artifact) -> StreamPlan:
    """Plan the weights of an artifact that stay in memory and those that are streamed. Raises UnsupportedError where
    none are streamed."""
    program = artifact.program()
    if not (program.streamed or program.tables):
        raise UnsupportedError(f"{artifact.where}: has all weights in memory; compile it again with --resident")
    return StreamPlan.of(
        program.streamed, artifact.weight_entries(program), artifact.manifest.plan, tables=program.tables
    )


def predict_speed(
    artifact: Artifact,
    resident: int | None = None,
    threads: int | None = None,
    shares: Sequence[Sequence[float]] | None = None,
) -> StreamSpeed:
    """Measure memory and the artifact's disk, which takes some seconds, and predict the speed.

    ``resident``: bytes of weights in memory, by default those that the artifact was compiled with. ``shares``: by
    layer, the share of tokens that select each expert, by default those of the profile it was compiled with. Raises
    MoecError where no token can run in that memory.
    """
    plan, threads = stream_plan(artifact), check_threads(threads)
    resident = artifact.manifest.resident if resident is None else resident
    if resident is None:
        raise MoecError(f"{artifact.where}: the memory for its weights is not known; give resident")
    plan.check(resident, artifact.where)
    if shares is not None:
        measured = [
            dataclasses.replace(spec, shares=tuple(own)) for spec, own in zip(plan.streamed, shares, strict=True)
        ]
        plan = dataclasses.replace(plan, streamed=measured)
    memory_bytes, disk_bytes = _bytes_of_a_token(plan, resident - plan.pinned)
    others = sum(end - start for start, end in plan.others)
    bandwidth = targets.program_kind_of(artifact.manifest.target).measure_roofline(threads).bandwidths
    disk = _disk_bandwidth(artifact, plan, disk_bytes) if disk_bytes else 1.0
    there = 1 - disk_bytes / memory_bytes
    return StreamSpeed(there, others + memory_bytes, disk_bytes, min(bandwidth.values()), disk)


def _bytes_of_a_token(plan: StreamPlan, room: int) -> tuple[float, float]:
    """Average bytes of the experts that a token selects: of all of them, and of those that are not in memory."""
    chances = np.array(
        [
            layer.shares[expert] if layer.shares else layer.chosen / layer.experts
            for layer in plan.streamed
            for expert in range(layer.experts)
        ]
    )
    sizes = np.array([layer.bytes_of(expert) for layer in plan.layers for expert in range(len(layer.places))])
    kept_most = np.argsort(-chances, kind="stable")
    before = np.concatenate([[0], np.cumsum(sizes[kept_most])[:-1]])
    kept = np.zeros(len(sizes))
    kept[kept_most] = np.clip((room - before) / np.maximum(sizes[kept_most], 1), 0, 1)
    return float(chances @ sizes), float(chances @ (sizes * (1 - kept)))


def _disk_bandwidth(artifact: Artifact, plan: StreamPlan, disk_bytes: float) -> float:
    """Measure the disk's bytes per second for experts of one layer after the other, as many at once as a token
    reads."""
    path = artifact.path(WEIGHTS)
    memory = ReservedMemory(plan.size)
    memory.open([(0, plan.size)])
    reads, random = DirectReads(path, memory.array), np.random.default_rng(0)
    typical = np.mean([layer.bytes_of(expert) for layer in plan.layers for expert in range(len(layer.places))])
    at_once = max(1, round(disk_bytes / len(plan.layers) / typical))
    total, start = 0, time.perf_counter()
    while total < _MEASURED_BYTES and time.perf_counter() - start < _MEASURED_SECONDS:
        layer = plan.layers[int(random.integers(len(plan.layers)))]
        chosen = random.permutation(len(layer.places))[:at_once]
        places = [place for expert in chosen for place in layer.places[expert]]
        read_now(reads, PendingRead(f"experts of {layer.name!r}", places), str(path))
        total += sum(end - start for start, end in places)
        memory.mapping.madvise(mmap.MADV_DONTNEED, 0, -(-plan.size // PAGE) * PAGE)
    return total / (time.perf_counter() - start)
