"""Files of JSON that say something of each layer of a model, one entry per layer, as people read and edit them."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from moec.errors import MoecError

VERSION = 1
_LARGEST = 64 << 20


def read_entries(path: str | os.PathLike[str], what: str, maker: str, fields: set[str]) -> dict[str, dict[str, Any]]:
    """The entries of a file by the keys of their layers. ``what`` the file is (``plan``), its ``maker``, and the
    ``fields`` of an entry, of which ``layer`` is one, are said in errors. Raises MoecError for a file that is none."""
    expected = f"expected a {what} as {maker} writes it"
    try:
        if pathlib.Path(path).stat().st_size > _LARGEST:
            raise MoecError(f"{path}: is larger than {_LARGEST} bytes; {expected}")
        data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise MoecError(f"{path}: the {what} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise MoecError(f"{path}: is not JSON: {error}; {expected}") from error
    if not isinstance(data, dict) or not isinstance(data.get("layers"), list):
        raise MoecError(f"{path}: holds no list of layers; {expected}")
    if data.get("version") != VERSION:
        raise MoecError(f"{path}: is a {what} of version {data.get('version')}; this moec reads version {VERSION}")
    for position, entry in enumerate(data["layers"]):
        if not isinstance(entry, dict) or set(entry) != fields:
            raise MoecError(f"{path}: layer {position}: expected the fields {', '.join(sorted(fields))}")
    found = {str(entry["layer"]): entry for entry in data["layers"]}
    if len(found) < len(data["layers"]):
        raise MoecError(f"{path}: names a layer twice; give each layer once")
    return found
