"""Outputs in the formats of other programs, which bear no mark of moec, so that nothing is ever replaced by them."""

from __future__ import annotations

import pathlib


def foreign_because(path: pathlib.Path) -> str | None:
    """Explain why a file or folder, neither special nor empty, is not replaced: nothing shows whose it is."""
    return f"exists, and a {'folder' if path.is_dir() else 'file'} of models for other programs is never replaced"
