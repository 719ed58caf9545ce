"""The head of a ``.moeprof`` file: the measured model and data, and one entry per layer."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, TypedDict

from moec.common.errors import MoecError
from moec.common.records import FieldRule, Size, read_record

VERSION = 3
_READ = (1, 2, VERSION)
_Kind = Annotated[str, FieldRule(lambda kind: kind in ("experts", "linear"), "experts or linear")]
_ADVICE = "the profile is damaged: make it anew"


@dataclasses.dataclass(frozen=True)
class LayerEntry:
    """Entry of one layer in the head. ``input``: for a linear, the number of the value it reads."""

    key: str
    kind: _Kind
    name: str
    inner: Size
    tokens: Size
    experts: Size = 0
    k: Size = 0
    hidden: Size = 0
    parts: tuple[str, ...] = ()
    next_key: str | None = None
    input: Size | None = None


class _Hashed(TypedDict, total=False):
    sha256: str | None


class DataPiece(_Hashed):
    """Piece of the data that was measured on."""

    name: str
    tokens: Size


@dataclasses.dataclass(frozen=True)
class Head:
    """Contents of the head.

    ``model``: ``name`` and ``sha256``. ``passes``: the pipeline whose result was measured. ``formats``: those whose
    errors were measured. ``inputs``: names of the model's inputs, in the order of the data that was held back (none
    before version 3). ``output``: name of the output that variants of the model are judged by, empty where there is
    none.
    """

    model: dict[str, str]
    data: list[DataPiece]
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
    head = read_record(Head, content, where, _ADVICE)
    keys = [layer.key for layer in head.layers]
    if len(set(keys)) != len(keys):
        raise MoecError(f"{where}: has a layer twice; {_ADVICE}")
    if any(layer.kind == "linear" and layer.input is None for layer in head.layers):
        raise MoecError(f"{where}: has a linear without the number of its input; {_ADVICE}")
    return head
