"""The alpha-beta model of links: a message takes a latency, and its bytes over a bandwidth (Hockney, "The Communication
Challenge for MPP", 1994).

Each rank has a link to the ranks of its node and one to all others, both in full duplex and at the same time. A node
whose ranks share one network card has a link of ``bandwidth / ranks of the node``. Messages to several ranks are
posted at once: they share the bandwidth and wait for one latency. What they lose by meeting in a switch is left out.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

import numpy as np

from moec.common.errors import MoecError

_LINK = re.compile(
    r"(\d+(?:\.\d+)?)\s*([KMGT]?)(B|bit|b)(?:/s|ps)\s*,\s*(\d+(?:\.\d+)?)\s*(ns|us|µs|ms|s)", re.ASCII | re.IGNORECASE
)
_MULTIPLES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclasses.dataclass(frozen=True)
class Link:
    """A link of ``bandwidth`` bytes per second in each direction and a ``latency`` in seconds."""

    bandwidth: float
    latency: float

    def seconds(self, count: float) -> float:
        """Compute the time of a message of ``count`` bytes."""
        return self.latency + count / self.bandwidth


Engine = Literal["gloo", "nccl"]

FREE = Link(float("inf"), 0.0)
"""A link that takes no time, for what a run would take without communication."""


@dataclasses.dataclass(frozen=True)
class Links:
    """Links of each rank: ``inside`` of its node and ``between`` the ``nodes``, which have equally many consecutive
    ranks. ``engine``: of torch.distributed. A message of gloo takes two latencies, because its receiver first says that
    it is ready."""

    inside: Link
    between: Link
    nodes: int = 1
    engine: Engine = "nccl"

    @property
    def trips(self) -> int:
        """Latencies of a message."""
        return 2 if self.engine == "gloo" else 1

    def faster(self, factor: float) -> Links:
        """Multiply the bandwidths of all links."""
        inside, between = (
            dataclasses.replace(link, bandwidth=link.bandwidth * factor) for link in (self.inside, self.between)
        )
        return dataclasses.replace(self, inside=inside, between=between)

    def alltoall(self, sent: np.ndarray) -> np.ndarray:
        """Compute the seconds [R] until each rank has sent and received its part of ``sent`` bytes [R,R]."""
        ranks = len(sent)
        node_of = np.arange(ranks) * self.nodes // ranks
        near = node_of[:, None] == node_of
        times = np.zeros(ranks)
        for link, reached in ((self.inside, near & ~np.eye(ranks, dtype=bool)), (self.between, ~near)):
            own = np.where(reached, sent, 0)
            transfer = self.trips * link.latency + np.maximum(own.sum(axis=1), own.sum(axis=0)) / link.bandwidth
            times = np.maximum(times, np.where(reached.any(axis=1), transfer, 0.0))
        return times


def parse_link(option: str, text: str) -> Link:
    """Parse ``50GB/s,5us`` or ``10Gbit/s,20us``; messages call it ``option``. Raises MoecError for other text, and for
    a bandwidth of 0."""
    match = _LINK.fullmatch(text.strip())
    if match is None or float(match[1]) == 0:
        raise MoecError(
            f"{option} is {text[:40]!r}; expected a bandwidth and a latency, such as 50GB/s,5us or 10Gbit/s,20us"
        )
    number, multiple, unit, latency, time = match.groups()
    bits = 1 if unit == "B" else 8
    return Link(float(number) * _MULTIPLES[multiple.lower()] / bits, float(latency) * _SECONDS[time.lower()])
