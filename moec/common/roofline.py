"""The limits of a machine: no program computes faster than its arithmetic units or reads faster than its memory.

A computation takes at least the longer of two times: its operations / peak of the arithmetic it uses, and its bytes /
read bandwidth (Williams, Waterman, Patterson, "Roofline", 2009). That time divided by the measured time is the share of
the roofline. Targets measure the limits; all code that shows shares uses this one definition.
"""

from __future__ import annotations

import dataclasses
from typing import Any

FLOAT32 = "float32"


@dataclasses.dataclass(frozen=True)
class Peak:
    """Peak of one kind of instruction; ``arithmetic`` is the type of its factors (sums are float32 or int32)."""

    arithmetic: str
    unit: str
    operations_per_second: float


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Measured limits. ``bandwidths``: bytes per second read from memory, by the kind of its pages. A multiply-add is
    two operations."""

    threads: int
    bandwidths: dict[str, float]
    peaks: tuple[Peak, ...]

    @property
    def bandwidth(self) -> float:
        """Best bytes per second from memory."""
        return max(self.bandwidths.values())

    def peak(self, arithmetic: str, *, without: str = "") -> float:
        """Most operations per second on numbers of a type, or on float32, to which any narrow type can be widened.
        ``without``: prefix of the names of units to ignore."""
        usable = (peak for peak in self.peaks if peak.arithmetic in (arithmetic, FLOAT32))
        return max(peak.operations_per_second for peak in usable if not (without and peak.unit.startswith(without)))

    def seconds(self, operations: float, bytes_read: float, arithmetic: str, *, without: str = "") -> float:
        """Least time of a computation."""
        return max(operations / self.peak(arithmetic, without=without), bytes_read / self.bandwidth)

    def as_data(self) -> dict[str, Any]:
        """Convert to plain data, which :meth:`from_data` reads, in GB/s and 10**9 operations per second."""
        peaks = [
            {"arithmetic": peak.arithmetic, "unit": peak.unit, "gop_per_s": peak.operations_per_second / 1e9}
            for peak in self.peaks
        ]
        bandwidths = {pages: value / 1e9 for pages, value in self.bandwidths.items()}
        return {"threads": self.threads, "read_gb_per_s": bandwidths, "peaks": peaks}

    @staticmethod
    def from_data(data: dict[str, Any]) -> Roofline:
        peaks = (Peak(peak["arithmetic"], peak["unit"], peak["gop_per_s"] * 1e9) for peak in data["peaks"])
        bandwidths = {pages: value * 1e9 for pages, value in data["read_gb_per_s"].items()}
        return Roofline(data["threads"], bandwidths, tuple(peaks))
