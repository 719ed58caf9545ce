"""No input reaches memory outside a tensor: inputs, intermediates, results and workspaces lie against pages without
access, and indices, sizes and counts are whatever a caller may send."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

SOURCE = pathlib.Path(__file__).with_name("guard_pages.c")
ROOT = pathlib.Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="libc's allocator is replaced as Linux allows it"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler, as the emulator does"),
]


SECONDS = 300
"""Time limit of the program, which takes some 25 s of processor time."""


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    library = tmp_path_factory.mktemp("guard") / "guard_pages.so"
    subprocess.run(["g++", "-x", "c", "-O1", "-shared", "-fPIC", str(SOURCE), "-o", str(library)], check=True)
    return library


@pytest.mark.parametrize("side", ["behind", pytest.param("before", marks=pytest.mark.nightly)])
def test_no_input_reaches_memory_outside_a_tensor(guard, side):
    environment = {**os.environ, "LD_PRELOAD": str(guard), **({"GUARD_FRONT": "1"} if side == "before" else {})}
    command = [sys.executable, "-m", "tests.targets.hostile_cases"]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"no answer in {SECONDS} s at {(error.stdout or b'').splitlines()[-1:]}")
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, f"ended by {done.returncode} at {last}: {done.stderr[-1500:]}"
    assert last == ["survived"]
