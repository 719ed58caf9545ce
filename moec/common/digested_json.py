"""JSON files that hold a digest of their content, by which moec recognises those that it wrote: JSON has no comment for
a seal (:mod:`moec.common.seals`). A digest shows that nobody changed the file; it is no signature.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any

from moec.common.plain_files import parse_json

_KEY = "digest"


def digested_json(content: dict[str, Any], indent: int | None = None) -> str:
    """Write an object as JSON with its digest as the last member."""
    separators = (",", ":") if indent is None else None
    return json.dumps({**content, _KEY: _digest(content)}, indent=indent, separators=separators) + "\n"


def foreign_json(path: pathlib.Path, most: int) -> str | None:
    """Explain why a file is not an unchanged file of :func:`digested_json` with at most ``most`` bytes. Returns None
    where it is one. Raises OSError."""
    if path.is_dir():
        return "is a folder, not a file"
    if path.stat().st_size > most:
        return f"is larger than {most} bytes, not a file that moec wrote"
    try:
        content = parse_json(path.read_bytes())
        digest = content.pop(_KEY)
    except (ValueError, KeyError, AttributeError, TypeError):
        return "is a file that moec did not write"
    return None if digest == _digest(content) else "is a file that was changed since moec wrote it"


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
