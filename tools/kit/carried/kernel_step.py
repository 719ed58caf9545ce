"""The step of some kernels: each launched as the host does, its results compared with the emulator's.

    python -m carried.kernel_step [--emulate] TAPE ...

Repeated with 2 and 4 multiprocessors where launches depend on their number: blocks then take many tiles, and the bits
have to be those of the first run.
"""

from __future__ import annotations

import sys

from .places import open_device, options
from .tape import Tape


def main() -> int:
    asked = options(__doc__, "tapes*")
    device = open_device(emulate=asked.emulate)
    return 0 if all([agrees(Tape(asked.folder, name, device)) for name in asked.tapes]) else 1


def agrees(tape: Tape) -> bool:
    """Compare a kernel's results, with each number of multiprocessors, and print what was found."""
    right, first = True, None
    for count in tape.multiprocessors:
        tape.restore()
        tape.run(count)
        for text, same in tape.compare():
            print(f"{count} multiprocessors: {text}{'' if same else ', DIFFERS'}", flush=True)
            right &= same
        results = tape.results()
        if first is not None and results != first:
            print(f"{count} multiprocessors: other bits than with {tape.multiprocessors[0]}, DIFFERS", flush=True)
            right = False
        first = first or results
    return right


if __name__ == "__main__":
    sys.exit(main())
