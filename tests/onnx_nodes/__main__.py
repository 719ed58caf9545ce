"""``python -m tests.onnx_nodes``: run ONNX's tests of operators and renew the table (docs/testing.md)."""

from __future__ import annotations

import argparse
import re

from . import table
from .cases import all_cases
from .sweep import sweep


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.onnx_nodes", description=__doc__)
    parser.add_argument("pattern", nargs="?", help="only cases whose name it matches; their outcomes are printed")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    cases = all_cases()
    chosen = {name: case for name, case in cases.items() if re.search(arguments.pattern or "", name)}
    outcomes = sweep(chosen.values(), arguments.workers)
    if arguments.pattern is None:
        table.write(cases, outcomes)
    print(table.text_of(cases, outcomes) if arguments.pattern else table.PATH.read_text().splitlines()[0])


if __name__ == "__main__":
    main()
