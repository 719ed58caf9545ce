"""The bundle in the package is what its sources make."""

from __future__ import annotations

import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
PAGE = ROOT / "moec" / "exploring" / "page"
MOST_BYTES = 400_000


def test_the_bundle_is_small():
    assert (PAGE / "explorer.js").stat().st_size <= MOST_BYTES


def test_the_bundle_is_built_from_its_sources(tmp_path):
    if shutil.which("npm") is None:
        pytest.skip("node is not installed: whether the bundle is built from its sources was not tested")
    folder, built = tmp_path / "explorer", tmp_path / "built"
    shutil.copytree(ROOT / "explorer", folder, ignore=shutil.ignore_patterns("node_modules"))
    modules = ROOT / "explorer" / "node_modules"
    if modules.is_dir():
        (folder / "node_modules").symlink_to(modules)
    else:
        done = _run(folder, "npm", "ci", "--no-audit", "--no-fund")
        if done.returncode:
            pytest.skip(f"npm cannot install what the bundle is built with: {done.stderr.strip()[-200:]}")
    done = _run(folder, "node", "build.mjs", str(built))
    assert done.returncode == 0, done.stderr
    for name in ("explorer.js", "explorer.css"):
        same = (built / name).read_bytes() == (PAGE / name).read_bytes()
        assert same, f"{name} is not what explorer/src makes; run: npm ci && node build.mjs in explorer/"


def _run(folder: pathlib.Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
