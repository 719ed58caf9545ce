"""Calibration of estimates by synthesis: figures of synthesised designs correct the estimates of further ones.

A project's ``compare_report.py --save FILE`` writes such a file from a synthesis report; ``moec compile --calibrated
FILE`` reads one or several. Each resource is corrected by one factor: its reported count over its estimated count, both
summed over all designs. The stages of a pipeline are the average of all pipelines reported.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypedDict

from moec.common.plain_files import read_bytes
from moec.common.records import FieldRule, read_json
from moec.targets.hls.design.numbers import MOST_STAGES, USUAL_STAGES

_COUNTED = ("dsp", "bram18", "uram", "lut", "flip_flops")
_MOST_BYTES = 1 << 20


def _between(least: float, most: float) -> FieldRule:
    return FieldRule(lambda number: least <= number <= most, f"a number from {least} to {most}")


_Clock, _Depth = Annotated[float, _between(1, 10_000)], Annotated[float, _between(1, MOST_STAGES)]
_Counts = Annotated[
    dict[str, Annotated[float, _between(0, 10**9)]],
    FieldRule(lambda counts: counts.keys() >= set(_COUNTED), f"counts of {', '.join(_COUNTED)}"),
]


class _MissedClock(TypedDict, total=False):
    clock_megahertz: _Clock | None


class _Synthesis(_MissedClock):
    """Figures of one synthesised design."""

    format: Literal["moec calibration"]
    part: str
    estimated: _Counts
    reported: _Counts
    stages: list[_Depth]


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
        clocks=tuple((record["part"].lower(), clock) for record in records if (clock := record.get("clock_megahertz"))),
    )


def _read(path: Path) -> _Synthesis:
    where, advice = f"{path}: is no calibration", "expected what compare_report.py --save of a project wrote"
    return read_json(_Synthesis, read_bytes(path, _MOST_BYTES), where, advice)
