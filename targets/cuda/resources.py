"""Resources of a kernel's functions on a GPU: registers, spills, shared memory, and how many blocks fit."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from moec.runtime.artifact import Artifact
from moec.targets.cuda.estimates.gpus import GPU_OF, GPUS

_SPILLS = re.compile(r"(\d+) bytes spill (?:stores|loads)")


def resources_of(artifact: Artifact, kernel: Mapping[str, Any], architecture: str) -> list[dict[str, Any]]:
    """The resources of each function that a kernel launches, as :meth:`moec.targets.kind.Kind.resources` has them.

    What depends on sizes of the model, or was not reported because there was no compiler, is None."""
    launches = {launch["function"]: launch for launch in kernel["launches"]}
    report = kernel["sources"].get("resources")
    spills = [int(size) for size in _SPILLS.findall(artifact.text(report))] if report is not None else []
    spill_bytes = sum(spills) if len(launches) == 1 and spills else None
    return [_resources(launch, architecture) | {"spill_bytes": spill_bytes} for launch in launches.values()]


def _resources(launch: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    threads = 1
    for size in launch["block"]:
        threads = threads * int(size) if threads and size.isdecimal() else 0
    dynamic = launch["shared_bytes"]
    shared = launch["static_shared_bytes"] + int(dynamic) if dynamic.isdecimal() else None
    registers, occupancy = launch["registers"], None
    if threads and shared is not None and registers is not None and architecture in GPU_OF:
        gpu = GPUS[GPU_OF[architecture]]
        fits = gpu.occupancy(threads, registers, shared, launch.get("tensor_columns", 0))
        occupancy = {"gpu": gpu.name, **dataclasses.asdict(fits), "most_warps": gpu.warps}
    return {
        "function": launch["function"],
        "registers": registers,
        "threads": threads or None,
        "shared_bytes": shared,
        "occupancy": occupancy,
    }
