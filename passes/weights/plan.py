"""The format of every expert's weights, as a file that people read and edit.

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

``layer`` is the key of the layer in a profile (:mod:`moec.profiles.keys`), ``name`` is for people. Each weight operand
has one format per expert, in the order of the experts and written as for ``--experts``; ``keep`` leaves a weight as it
is. Layers and operands that are not in the file stay as they are.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from moec.passes.weights.layers_file import VERSION, read_layers

KEEP = "keep"


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """One layer's formats, by operand and expert."""

    layer: str
    name: str
    formats: dict[str, list[str]]


def read_plan(path: str | os.PathLike[str]) -> dict[str, LayerPlan]:
    """The layers of a plan by their keys. Raises MoecError for a file that is not a plan, and for errors in one."""
    return read_layers(path, LayerPlan, "plan", "moec plan")


def plan_text(layers: Sequence[LayerPlan], notes: Mapping[str, Any]) -> str:
    """The text of a plan; ``notes``: further entries, for people."""
    entries = [dataclasses.asdict(layer) for layer in layers]
    return json.dumps({"version": VERSION, **notes, "layers": entries}, indent=1) + "\n"
