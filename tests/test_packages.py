"""Packages that an installation has, and that Python finds in a checkout without one."""

from __future__ import annotations

import os
import pathlib
import runpy
import subprocess
import sys
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def test_every_folder_with_code_is_a_package_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    setuptools = pytest.importorskip("setuptools")
    arguments: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **options: arguments.update(options))
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    tops = ("moec", "passes", "simulators", "targets")
    folders = {file.parent.relative_to(ROOT) for top in tops for file in (ROOT / top).rglob("*.py")}
    names = [".".join(folder.parts if folder.parts[0] == "moec" else ("moec", *folder.parts)) for folder in folders]
    assert sorted(arguments["packages"]) == sorted(names)


def test_python_started_in_the_checkout_finds_all_packages() -> None:
    """``-S`` leaves out the paths that an editable installation adds; its libraries are named instead."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    program = "import moec.passes, moec.simulators, moec.targets; print(moec.passes.__file__)"
    command = [sys.executable, "-S", "-c", program]
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert pathlib.Path(done.stdout.strip()).parent == ROOT / "passes"
