"""The folder of the kit, and the device of a step."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

FOLDER = pathlib.Path(__file__).resolve().parent.parent


def options(description: str | None, *names: str) -> argparse.Namespace:
    """Read the command line of a step, with ``names`` as arguments, ``--emulate``, and the ``folder`` of the kit. A
    name that ends with a star takes several."""
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
    from .gpu import Gpu

    return Gpu()
