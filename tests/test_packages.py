"""Packages that an installation has, and that Python finds in a checkout without one."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


def test_every_folder_with_code_is_a_package_that_is_installed() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^packages = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    assert listed is not None
    tops = ("moec", "passes", "simulators", "targets")
    folders = {file.parent.relative_to(ROOT) for top in tops for file in (ROOT / top).rglob("*.py")}
    names = {".".join(folder.parts if folder.parts[0] == "moec" else ("moec", *folder.parts)) for folder in folders}
    assert set(re.findall(r'"([\w.]+)"', listed[1])) == names


def test_python_started_in_the_checkout_finds_all_packages() -> None:
    """``-S`` leaves out the paths that an editable installation adds; its libraries are named instead."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    program = "import moec.passes, moec.simulators, moec.targets; print(moec.passes.__file__)"
    command = [sys.executable, "-S", "-c", program]
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert pathlib.Path(done.stdout.strip()).parent == ROOT / "passes"
