"""The program ``moec``, also as ``python -m moec``.

Ctrl-C ends it at once and without a word from its first line on: :mod:`moec.cli.main` takes a few tenths of a second to
import, and Python would print a traceback of wherever an import was.
"""

from __future__ import annotations

import os
import signal

from moec.cli import INTERRUPTED
from moec.common.garbage import collect_less_often


def main() -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as for programs in the background
        signal.signal(signal.SIGINT, lambda _signal, _frame: os._exit(INTERRUPTED))  # nothing is begun yet
    collect_less_often()
    from moec.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
