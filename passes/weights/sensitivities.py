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

from moec.common.records import FieldRule
from moec.passes.weights.layers_file import VERSION, read_layers

_Factor = Annotated[float, FieldRule(lambda factor: 0 <= factor < math.inf, "a finite number from 0 up")]


@dataclasses.dataclass(frozen=True)
class _LayerWeight:
    layer: str
    name: str
    weight: _Factor


def read_sensitivities(path: str | os.PathLike[str]) -> dict[str, float]:
    """The weights of layers by their keys. Raises MoecError for a file of another form, and for weights that are not
    numbers or negative."""
    layers = read_layers(path, _LayerWeight, "file of sensitivities", "moec.tools.sensitivities")
    return {key: layer.weight for key, layer in layers.items()}


def sensitivities_text(weights: Mapping[tuple[str, str], float]) -> str:
    """The text of a file with the ``weights`` of layers, by their key and name."""
    entries = [{"layer": key, "name": name, "weight": weight} for (key, name), weight in weights.items()]
    return json.dumps({"version": VERSION, "layers": entries}, indent=1) + "\n"
