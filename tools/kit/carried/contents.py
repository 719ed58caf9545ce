"""The contents of the kit, packed into one file until the first call."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import shutil
import sys
import zipfile


def check_python(about: dict[str, str]) -> None:
    """Raise ValueError for another Python than the kit is for, and for one without numpy."""
    version, expected = f"{sys.version_info.major}.{sys.version_info.minor}", about["python"]
    if version != expected:
        raise ValueError(
            f"Python {version}: the kit is for Python {expected}; set PYTHON, or pack it with --python {version}"
        )
    if importlib.util.find_spec("numpy") is None:
        raise ValueError(f"{sys.executable}: has no numpy; install it, or set PYTHON to a Python that has it")


def unpacked(here: pathlib.Path, work: pathlib.Path) -> pathlib.Path:
    """The folder of the contents, which the first call unpacks into ``work``; one call at a time. Raises ValueError
    for a Python that cannot run the kit and for a damaged kit, OSError where nothing can be written."""
    packed, folder, part = here / "contents.zip", work / "contents", work / "contents.part"
    try:
        with zipfile.ZipFile(packed) as archive:
            check_python(json.loads(archive.read("about.json")))
            if not folder.exists():
                shutil.rmtree(part, ignore_errors=True)
                archive.extractall(part)
                os.replace(part, folder)
    except zipfile.BadZipFile as error:
        shutil.rmtree(part, ignore_errors=True)
        raise ValueError(f"{packed}: damaged ({error}); copy the kit again") from error
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return folder
