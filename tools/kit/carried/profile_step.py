"""The step that a profiler looks at: the launches of one layer of experts, once after a run that does not count.

python -m carried.profile_step TAPE
"""

from __future__ import annotations

import sys

from .places import open_device, options
from .tape import Tape


def main() -> int:
    asked = options(__doc__, "tape")
    tape = Tape(asked.folder, asked.tape, open_device(emulate=asked.emulate))
    tape.restore()
    for _ in range(2):
        tape.run(tape.multiprocessors[0])
    tape.device.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
