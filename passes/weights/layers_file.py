"""Files of JSON that say something of each layer of a model, one entry per layer, as people read and edit them."""

from __future__ import annotations

import os
from typing import Any

from moec.common.errors import MoecError
from moec.common.plain_files import parse_json, read_bytes

VERSION = 1
_LARGEST = 64 << 20


def read_entries(path: str | os.PathLike[str], what: str, maker: str, fields: set[str]) -> dict[str, dict[str, Any]]:
    """The entries of a file by the keys of their layers. Errors name the kind of file ``what`` (``plan``), its
    ``maker``, and the ``fields`` of an entry, among them ``layer``. Raises MoecError for a file of another form."""
    expected = f"expected a {what} as {maker} writes it"
    try:
        data = parse_json(read_bytes(path, _LARGEST))
    except ValueError as error:
        raise MoecError(f"{path}: is not JSON: {error}; {expected}") from error
    if not isinstance(data, dict) or not isinstance(data.get("layers"), list):
        raise MoecError(f"{path}: holds no list of layers; {expected}")
    if type(data.get("version")) is not int or data["version"] != VERSION:
        actual = str(data.get("version"))[:40]
        raise MoecError(f"{path}: is a {what} of version {actual}; this moec reads version {VERSION}")
    for position, entry in enumerate(data["layers"]):
        if not isinstance(entry, dict) or set(entry) != fields:
            raise MoecError(f"{path}: layer {position}: expected the fields {', '.join(sorted(fields))}")
        if not isinstance(entry["layer"], str) or not isinstance(entry["name"], str):
            raise MoecError(f"{path}: layer {position}: layer and name are texts; {expected}")
    by_layer = {entry["layer"]: entry for entry in data["layers"]}
    if len(by_layer) < len(data["layers"]):
        raise MoecError(f"{path}: names a layer twice; give each layer once")
    return by_layer
