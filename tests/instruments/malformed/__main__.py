"""Malformed inputs of every kind: each is refused in one line, or read. See docs/testing.md.

python -m tests.instruments.malformed npz 500 --seed 3
"""

from __future__ import annotations

import argparse
import sys

from .kinds import MODULES
from .sweep import sweep, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.instruments.malformed", description=__doc__)
    parser.add_argument("kind", choices=[*MODULES, "all"])
    parser.add_argument("count", type=int, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first; with count 1, that case again")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--show", help="print all cases of this status, too: pass, refused")
    arguments = parser.parse_args()
    kinds = list(MODULES) if arguments.kind == "all" else [arguments.kind]
    results = []
    for kind in kinds:
        numbers = range(arguments.first, arguments.first + arguments.count)
        for case, verdict in sweep(kind, numbers, arguments.seed, arguments.workers):
            results.append((kind, verdict))
            if verdict.failed or verdict.status == arguments.show:
                print(f"{verdict.status}: {case}: {verdict.damage}: {verdict.message[:400]}", flush=True)
    print(table(results))
    return 1 if any(verdict.failed for _, verdict in results) else 0


if __name__ == "__main__":
    sys.exit(main())
