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

import json
import os
import sys
from collections.abc import Mapping

from moec.common.errors import MoecError
from moec.passes.weights.layers_file import VERSION, read_entries


def read_sensitivities(path: str | os.PathLike[str]) -> dict[str, float]:
    """The weights of layers by their keys. Raises MoecError for a file of another form, and for weights that are not
    numbers or negative."""
    entries = read_entries(path, "file of sensitivities", "moec.tools.sensitivities", {"layer", "name", "weight"})
    for entry in entries.values():
        weight = entry["weight"]
        if type(weight) not in (int, float) or not 0 <= weight <= sys.float_info.max:
            where = f"{path}: layer {entry['layer']} ({entry['name']})"
            raise MoecError(f"{where}: weight is {str(weight)[:40]}; expected a number, 0 or more")
    return {key: float(entry["weight"]) for key, entry in entries.items()}


def sensitivities_text(weights: Mapping[tuple[str, str], float]) -> str:
    """The text of a file with the ``weights`` of layers, by their key and name."""
    entries = [{"layer": key, "name": name, "weight": weight} for (key, name), weight in weights.items()]
    return json.dumps({"version": VERSION, "layers": entries}, indent=1) + "\n"
