"""The time that launches take: by the host, and in a captured graph.

The host's is judged by experts, measured by nobody. A launch through TVM's virtual machine takes 5 to 7 us, of which
the driver's part is about 3. A run of a program takes 0.5 to 1 ms more, for Python, copies of inputs and outputs, and
the choice of a token. A captured graph has neither.

In a graph, the GPU takes about 1.3 us from one small kernel to the next, which an H100 was measured to take for other
kernels (hazyresearch.stanford.edu/blog/2025-05-27-no-bubbles). Kernels that begin early take less, which is not
counted.
"""

from __future__ import annotations

LAUNCH_SECONDS = 6e-6
"""Seconds of the host for one launch."""
RUN_SECONDS = 0.75e-3
"""Seconds of the host for a run, without its launches."""
GRAPH_LAUNCH_SECONDS = 1.3e-6
"""Seconds of the GPU between two kernels of a captured graph."""


def host_seconds(launches: int) -> float:
    """The seconds in which the host runs a program of so many launches."""
    return RUN_SECONDS + launches * LAUNCH_SECONDS


def graph_seconds(launches: int, least_seconds: float) -> float:
    """The seconds of a captured graph of so many launches, which compute for ``least_seconds``."""
    return least_seconds + launches * GRAPH_LAUNCH_SECONDS
