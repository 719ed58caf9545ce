"""Files of JSON that say something of each layer of a model, one entry per layer, as people read and edit them."""

from __future__ import annotations

import os
from typing import Any, Protocol, TypedDict, TypeVar

from moec.common.errors import MoecError
from moec.common.plain_files import read_bytes
from moec.common.records import read_json, read_record

VERSION = 1
_LARGEST = 64 << 20


class _LayerRecord(Protocol):
    @property
    def layer(self) -> str: ...


_Layer = TypeVar("_Layer", bound=_LayerRecord)


class _LayersFile(TypedDict):
    version: int
    layers: list[Any]


def read_layers(path: str | os.PathLike[str], kind: type[_Layer], what: str, maker: str) -> dict[str, _Layer]:
    """Read the entries of a file, which are of a ``kind``, by the keys of their layers. Errors name the kind of file,
    such as ``plan``, and its ``maker``. Raises MoecError for a file of another form."""
    expected = f"expected a {what} as {maker} writes it"
    content = read_json(_LayersFile, read_bytes(path, _LARGEST), str(path), expected)
    if content["version"] != VERSION:
        raise MoecError(f"{path}: is a {what} of version {content['version']}; this moec reads version {VERSION}")
    layers = [
        read_record(kind, entry, f"{path}: layer {place}", expected) for place, entry in enumerate(content["layers"])
    ]
    by_key = {layer.layer: layer for layer in layers}
    if len(by_key) < len(layers):
        raise MoecError(f"{path}: names a layer twice; give each layer once")
    return by_key
