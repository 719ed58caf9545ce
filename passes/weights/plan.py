"""Which format every expert's weights get, as a file that people read and edit.

::

    {
     "version": 1,
     "layers": [
      {
       "layer": "d6cc761a263a4c41",
       "name": "node_topk__1.experts",
       "formats": {"up": ["int4/32", "int2/32"], "down": ["int4/32", "keep"]}
      }
     ]
    }

``layer`` is the key of the layer in a profile (:mod:`moec.profile.keys`), ``name`` is for people. Of each weight
operand there is one format per expert, in the order of the experts, as ``--experts`` takes them; ``keep`` leaves one as
it is. A layer or an operand that is not there stays as it is.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from moec.errors import MoecError

VERSION = 1
KEEP = "keep"
_LARGEST = 64 << 20


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """One layer's formats, by operand and expert."""

    layer: str
    name: str
    formats: dict[str, list[str]]


def read_plan(path: str | os.PathLike[str]) -> dict[str, LayerPlan]:
    """The layers of a plan by their keys. Raises MoecError for a file that is no plan, and for what is wrong in one."""
    try:
        if pathlib.Path(path).stat().st_size > _LARGEST:
            raise MoecError(f"{path}: is larger than {_LARGEST} bytes; expected a plan as moec plan writes it")
        data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise MoecError(f"{path}: the plan cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise MoecError(f"{path}: is not JSON: {error}; expected a plan as moec plan writes it") from error
    if not isinstance(data, dict) or not isinstance(data.get("layers"), list):
        raise MoecError(f"{path}: holds no list of layers; expected a plan as moec plan writes it")
    if data.get("version") != VERSION:
        raise MoecError(f"{path}: is a plan of version {data.get('version')}; this moec reads version {VERSION}")
    layers = [_layer(path, position, layer) for position, layer in enumerate(data["layers"])]
    found = {layer.layer: layer for layer in layers}
    if len(found) < len(layers):
        raise MoecError(f"{path}: names a layer twice; say once what becomes of it")
    return found


def _layer(path: str | os.PathLike[str], position: int, data: Any) -> LayerPlan:
    where = f"{path}: layer {position}"
    if not isinstance(data, dict) or set(data) != {"layer", "name", "formats"}:
        raise MoecError(f"{where}: expected the fields layer, name and formats")
    formats = data["formats"]
    lists = isinstance(formats, dict) and all(isinstance(one, list) for one in formats.values())
    if not lists or not all(isinstance(text, str) for one in formats.values() for text in one):
        raise MoecError(f"{where}: formats: expected a list of formats for each weight, one per expert")
    return LayerPlan(str(data["layer"]), str(data["name"]), formats)


def plan_text(layers: Sequence[LayerPlan], told: Mapping[str, Any]) -> str:
    """A plan as it is written; ``told``: what else it says, for people."""
    entries = [dataclasses.asdict(layer) for layer in layers]
    return json.dumps({"version": VERSION, **told, "layers": entries}, indent=1) + "\n"
