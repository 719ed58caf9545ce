"""Findings of ``moec doctor`` about GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from moec.common.errors import MoecError
from moec.common.tables import table
from moec.targets.cuda.device.driver import open_driver
from moec.targets.cuda.hardware.architectures import LIMITS, newest_that_runs


def examine_gpus() -> dict[str, Any]:
    """The version of CUDA that the driver supports, and each GPU with the best target for it, if there is one.
    ``absent`` says why there is no GPU, or is None."""
    try:
        driver = open_driver()
        gpus = [
            {
                "name": gpu.name,
                "compute_capability": gpu.capability,
                "memory_gb": round(gpu.memory_bytes / 1e9, 1),
                "target": _target_for(gpu.capability),
            }
            for gpu in driver.gpus()
        ]
        version = ".".join(map(str, driver.version))
    except MoecError as error:
        return {"driver_cuda": None, "devices": [], "absent": str(error)}
    return {"driver_cuda": version, "devices": gpus, "absent": None if gpus else "the driver finds no GPU"}


def _target_for(capability: str) -> str | None:
    best = newest_that_runs(LIMITS, capability)
    return None if best is None else f"cuda:{best}"


def gpu_tables(gpu_report: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The result of :func:`examine_gpus` as a table, or one line if there is no GPU."""
    gpus = [tuple("none" if value is None else str(value) for value in gpu.values()) for gpu in gpu_report["devices"]]
    if gpus:
        title = f"GPUs (driver for CUDA {gpu_report['driver_cuda']})"
        yield table(title, ("GPU", "compute capability", "memory, GB", "--target"), gpus)
    else:
        yield Text(f"no GPU: {gpu_report['absent']}")
