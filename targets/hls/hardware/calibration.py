"""Calibration of estimates by synthesis: figures of synthesised designs correct the estimates of further ones.

A project's ``compare_report.py --save FILE`` writes such a file from a synthesis report; ``moec compile --calibrated
FILE`` reads one or several. Each resource is corrected by one factor: its reported count over its estimated count, both
summed over all designs. The stages of a pipeline are the average of all pipelines reported.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moec.common.errors import MoecError
from moec.targets.hls.design.numbers import MOST_STAGES, USUAL_STAGES

FORMAT = "moec calibration"
_COUNTED = ("dsp", "bram18", "uram", "lut", "flip_flops")
_MOST_BYTES, _MOST_COUNT = 1 << 20, 10**9


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Correction factors of the resources; ``stages``: of every pipeline, for counting cycles; ``clocks``: devices with
    the MHz that synthesis reached there, for each design that missed the clock it asked for."""

    dsp: float = 1.0
    bram18: float = 1.0
    uram: float = 1.0
    lut: float = 1.0
    flip_flops: float = 1.0
    stages: int = USUAL_STAGES
    clocks: tuple[tuple[str, float], ...] = ()

    def factors(self) -> dict[str, float]:
        """The factor of each resource, by its name."""
        return {name: getattr(self, name) for name in _COUNTED}

    def clock(self, device: str) -> float:
        """The clock in MHz of the slowest design on the device; infinite where no design missed its clock."""
        return min((clock for name, clock in self.clocks if name == device.lower()), default=math.inf)


UNCORRECTED = Calibration()


def read_calibrations(paths: Sequence[Path]) -> Calibration:
    """The calibration from all files together.

    Raises MoecError for a file that cannot be read or that ``compare_report.py --save`` has not written.
    """
    records = [_read(path) for path in paths]
    if not records:
        return UNCORRECTED
    factors = {}
    for name in _COUNTED:
        estimated, reported = (sum(record[kind][name] for record in records) for kind in ("estimated", "reported"))
        factors[name] = reported / estimated if estimated >= 1 and reported else 1.0
    stages = [depth for record in records for depth in record["stages"]]
    return Calibration(
        **factors,
        stages=round(sum(stages) / len(stages)) if stages else USUAL_STAGES,
        clocks=tuple(
            (record["part"].lower(), record["clock_megahertz"]) for record in records if record["clock_megahertz"]
        ),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
        record = json.loads(text) if len(text) <= _MOST_BYTES else None
    except OSError as error:
        raise MoecError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not _is_calibration(record):
        raise MoecError(f"{path}: is no calibration; expected what compare_report.py --save of a project wrote")
    return record


def _is_calibration(found: dict[str, Any]) -> bool:
    stages = found.get("stages")
    return (
        found.get("format") == FORMAT
        and isinstance(found.get("part"), str)
        and all(_are_counts(found.get(kind)) for kind in ("estimated", "reported"))
        and isinstance(stages, list)
        and all(_is_number(depth, 1, MOST_STAGES) for depth in stages)
        and (found.get("clock_megahertz") is None or _is_number(found["clock_megahertz"], 1, 10_000))
    )


def _are_counts(found: Any) -> bool:
    return isinstance(found, dict) and all(_is_number(found.get(name), 0, _MOST_COUNT) for name in _COUNTED)


def _is_number(found: Any, least: float, most: float) -> bool:
    is_number = isinstance(found, (int, float)) and not isinstance(found, bool)
    return is_number and least <= found <= most
