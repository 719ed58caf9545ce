"""Factors for the errors of each layer, as a file that people read and edit.

::

    {
     "version": 1,
     "layers": [
      {
       "layer": "d6cc761a263a4c41",
       "name": "node_topk__1.experts",
       "weight": 34.5
      }
     ]
    }

``layer`` is the key of the layer in a profile (:mod:`moec.profiles.keys`), ``name`` is for people. The layer's errors
are multiplied by ``weight``; only ratios matter. :mod:`moec.tools.sensitivities` measures them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from typing import Annotated

from moec.common.errors import MoecError
from moec.common.plain_files import read_bytes
from moec.common.records import FieldRule, read_json

VERSION = 1
_LARGEST = 64 << 20
_Version = Annotated[int, FieldRule(lambda version: version == VERSION, f"{VERSION}, that of this moec")]
_Factor = Annotated[float, FieldRule(lambda factor: 0 <= factor < math.inf, "a finite number from 0 up")]


@dataclasses.dataclass(frozen=True)
class _LayerWeight:
    layer: str
    name: str
    weight: _Factor


@dataclasses.dataclass(frozen=True)
class _Sensitivities:
    version: _Version
    layers: list[_LayerWeight]


def read_sensitivities(path: str | os.PathLike[str]) -> dict[str, float]:
    """The weights of layers by their keys. Raises MoecError for a file of another form, for weights that are not
    numbers or negative, and for a layer that is named twice."""
    expected = "expected a file of sensitivities as moec.tools.sensitivities writes it"
    layers = read_json(_Sensitivities, read_bytes(path, _LARGEST), str(path), expected).layers
    weights = {layer.layer: layer.weight for layer in layers}
    if len(weights) < len(layers):
        raise MoecError(f"{path}: names a layer twice; give each layer once")
    return weights


def sensitivities_text(weights: Mapping[tuple[str, str], float]) -> str:
    """The text of a file with the ``weights`` of layers, by their key and name."""
    entries = [{"layer": key, "name": name, "weight": weight} for (key, name), weight in weights.items()]
    return json.dumps({"version": VERSION, "layers": entries}, indent=1) + "\n"
