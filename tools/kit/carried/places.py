"""The folder of the kit, and the device of a step."""

from __future__ import annotations

import argparse
import ctypes
import os
import pathlib
import signal
from typing import Any

RUNNER = "KIT_RUNNER"
"""The variable with the number of the runner's process."""
_SIGNAL_WITH_PARENT = 1  # PR_SET_PDEATHSIG
FOLDER = pathlib.Path(__file__).resolve().parent.parent


def end_with_parent(*, with_children: bool = False) -> None:
    """Let this process be killed when the runner of the kit ends: a kernel that hangs would keep the GPU otherwise.
    Nothing where another program started it: the system would kill it with the thread of that program that did.

    ``with_children``: also the programs that it started; not for a process that calls the driver, since a call that
    hangs never comes back to the handler of the signal."""
    if os.environ.get(RUNNER) != str(os.getppid()):
        return
    if with_children:
        signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    number = signal.SIGTERM if with_children else signal.SIGKILL
    ctypes.CDLL(None).prctl(_SIGNAL_WITH_PARENT, int(number), 0, 0, 0)


def options(description: str | None, *names: str) -> argparse.Namespace:
    """Read the command line of a step, with ``names`` as arguments, ``--emulate``, and the ``folder`` of the kit. A
    name that ends with a star takes several."""
    end_with_parent()
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emulate", action="store_true", help="run kernels in the emulator")
    parser.add_argument("--folder", type=pathlib.Path, default=FOLDER)
    for name in names:
        parser.add_argument(name.rstrip("*"), nargs="+" if name.endswith("*") else None)
    return parser.parse_args()


def open_device(*, emulate: bool) -> Any:
    """Open the GPU, or the emulator."""
    if emulate:
        from .emulator import Emulator

        return Emulator()
    from .gpu import KitGpu

    return KitGpu()
