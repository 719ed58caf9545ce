"""What an installation that is not editable contains."""

from __future__ import annotations

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent


def test_every_folder_with_code_is_a_package_that_is_installed() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^packages = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    assert listed is not None
    tops = ("moec", "passes", "simulators", "targets")
    folders = {file.parent.relative_to(ROOT) for top in tops for file in (ROOT / top).rglob("*.py")}
    names = {".".join(folder.parts if folder.parts[0] == "moec" else ("moec", *folder.parts)) for folder in folders}
    assert set(re.findall(r'"([\w.]+)"', listed[1])) == names
