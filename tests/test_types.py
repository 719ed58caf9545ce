"""Annotations fit together, as pyright reads them."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

CHECK = pathlib.Path(__file__).parents[1] / "tools" / "check_types.py"


@pytest.mark.slow
def test_pyright_finds_no_error() -> None:
    done = subprocess.run([sys.executable, str(CHECK)], capture_output=True, text=True, check=False)
    errors = [line for line in done.stdout.splitlines() if " error: " in line]
    assert done.returncode == 0, "\n".join([*errors, done.stderr])
