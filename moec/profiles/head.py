"""The head of a ``.moeprof`` file: the measured model and data, and one entry per layer."""

from __future__ import annotations

import dataclasses
from typing import Any

from moec.common.errors import MoecError
from moec.common.fields import Fields

VERSION = 3
_READ = (1, 2, VERSION)
_HOLDS_BACK = 3
"""First version with names of inputs and an output."""
_KINDS = ("experts", "linear")
_ADVICE = "the profile is damaged: make it anew"


@dataclasses.dataclass(frozen=True)
class LayerEntry:
    """Entry of one layer in the head. ``input``: for a linear, the number of the value it reads."""

    key: str
    kind: str
    name: str
    inner: int
    tokens: int
    experts: int = 0
    k: int = 0
    hidden: int = 0
    parts: tuple[str, ...] = ()
    next_key: str | None = None
    input: int | None = None


@dataclasses.dataclass(frozen=True)
class Head:
    """Contents of the head.

    ``model``: ``name`` and ``sha256``. ``data``: ``name``, ``sha256`` and number of ``tokens`` of each piece.
    ``passes``: the pipeline whose result was measured. ``formats``: those whose errors were measured. ``inputs``: names
    of the model's inputs, in the order of the data that was held back. ``output``: name of the output that variants of
    the model are judged by, empty where there is none.
    """

    model: dict[str, str]
    data: list[dict[str, Any]]
    passes: str
    formats: list[str]
    layers: list[LayerEntry]
    version: int = VERSION
    inputs: list[str] = dataclasses.field(default_factory=list)
    output: str = ""


def read_head(content: Any, where: str) -> Head:
    """Parse the head. Raises MoecError for JSON that is no head, or has a version that is not supported."""
    version = content.get("version") if isinstance(content, dict) else None
    if type(version) is not int:
        raise MoecError(f"{where}: is not a profile; make one with moec profile MODEL --data DATA -o P")
    if version not in _READ:
        raise MoecError(
            f"{where}: is a profile of version {str(version)[:20]}; this moec reads versions {_READ[0]} to "
            f"{_READ[-1]}: make it anew"
        )
    fields = Fields(content, where, _ADVICE)
    layers = [_layer(entry) for entry in fields.objects("layers")]
    keys = [layer.key for layer in layers]
    if len(set(keys)) != len(keys):
        raise MoecError(f"{where}: has a layer twice; {_ADVICE}")
    return Head(
        fields.texts_by_name("model"),
        [_piece(entry) for entry in fields.objects("data")],
        fields.text("passes"),
        fields.texts("formats"),
        layers,
        version,
        fields.texts("inputs") if version >= _HOLDS_BACK else [],
        fields.text("output") if version >= _HOLDS_BACK else "",
    )


def _piece(fields: Fields) -> dict[str, Any]:
    piece: dict[str, Any] = {"name": fields.text("name")}
    sha256 = fields.optional_text("sha256")
    return piece | ({} if sha256 is None else {"sha256": sha256}) | {"tokens": fields.whole("tokens")}


def _layer(fields: Fields) -> LayerEntry:
    fields.check_keys({field.name for field in dataclasses.fields(LayerEntry)})
    kind = fields.text("kind")
    if kind not in _KINDS:
        raise fields.wrong("kind", " or ".join(_KINDS))
    numbers = {key: fields.whole(key, default=0) for key in ("experts", "k", "hidden")}
    return LayerEntry(
        fields.text("key"),
        kind,
        fields.text("name"),
        fields.whole("inner"),
        fields.whole("tokens"),
        **numbers,
        parts=tuple(fields.texts("parts")),
        next_key=fields.optional_text("next_key"),
        input=fields.whole("input") if kind == "linear" else fields.optional_whole("input"),
    )
