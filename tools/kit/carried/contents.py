"""The contents of the kit, packed into one file until the first call."""

from __future__ import annotations

import json
import os
import pathlib
import sys
import tempfile
import zipfile


def unpacked(here: pathlib.Path) -> pathlib.Path:
    """The folder of the contents, which the first call unpacks. Raises ValueError for another Python than the kit is
    for, OSError where nothing can be written."""
    packed, folder = here / "contents.zip", here / "contents"
    with zipfile.ZipFile(packed) as archive:
        python = json.loads(archive.read("about.json"))["python"]
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        if version != python:
            raise ValueError(
                f"Python {version}: the kit is for Python {python}; set PYTHON, or pack it with --python {version}"
            )
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=here) as scratch:
                archive.extractall(pathlib.Path(scratch, "contents"))
                os.replace(pathlib.Path(scratch, "contents"), folder)
    return folder
