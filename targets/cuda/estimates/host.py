"""The time that the host takes where no captured graph runs: judged by experts, measured by nobody.

A launch through TVM's virtual machine takes 5 to 7 us, of which the driver's part is about 3. A run of a program takes
0.5 to 1 ms more, for Python, copies of inputs and outputs, and the choice of a token. A captured graph has neither.
"""

from __future__ import annotations

LAUNCH_SECONDS = 6e-6
"""Seconds of the host for one launch."""
RUN_SECONDS = 0.75e-3
"""Seconds of the host for a run, without its launches."""


def host_seconds(launches: int) -> float:
    """The seconds in which the host runs a program of so many launches."""
    return RUN_SECONDS + launches * LAUNCH_SECONDS
