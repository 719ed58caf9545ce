"""Folder of results that moec keeps between runs: ``$XDG_CACHE_HOME/moec``, by default ``~/.cache/moec``."""

from __future__ import annotations

import os
import pathlib


def user_cache() -> pathlib.Path:
    """Return the folder, which may not exist yet. Raises OSError where the user has no home."""
    cache = os.environ.get("XDG_CACHE_HOME")
    if cache and os.path.isabs(cache):  # the specification says to ignore others
        return pathlib.Path(cache) / "moec"
    try:
        return pathlib.Path.home() / ".cache" / "moec"
    except RuntimeError as error:
        raise OSError("the user has no home folder") from error
