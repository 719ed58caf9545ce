"""``python -m tests.mutants``: thousands of malformed models (docs/testing.md)."""

from __future__ import annotations

import argparse
import pathlib
import sys

from .sweep import sweep


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("count", nargs="?", type=int, default=5000, help="how many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first; with count 1, that mutant again")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("mutants"), help="folder for log and failures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    counts, failures = sweep(range(options.first, options.first + options.count), options.seed, options.out)
    print(*failures, sep="\n")
    print(", ".join(f"{number} {status}" for status, number in counts.most_common()))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
