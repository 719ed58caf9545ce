"""Annotations fit together, as pyrefly reads them."""

from __future__ import annotations

import pathlib
import subprocess
import sys

CHECK = pathlib.Path(__file__).parents[1] / "tools" / "check_types.py"


def test_pyrefly_finds_no_error() -> None:
    done = subprocess.run([sys.executable, str(CHECK)], capture_output=True, text=True, check=False)
    errors = [line for line in done.stdout.splitlines() if line.startswith("ERROR")]
    assert done.returncode == 0, "\n".join([*errors, done.stderr])
