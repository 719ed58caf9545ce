"""The placement of experts in the metadata of a model and its nodes. The pass ``place-experts`` writes it."""

from __future__ import annotations

import onnx_ir as ir

from moec.common.errors import MoecError
from moec.placing.placement import ExpertPlacement, read_placement

PLACEMENT_KEY = "moec.placement"
"""Key of a model's metadata: the placement, in JSON."""
LAYER_KEY = "moec.layer"
"""Key of a node's metadata: the number of its experts' layer in the placement."""


def set_placement(model: ir.Model, placement: ExpertPlacement) -> None:
    """Record the placement in a model's metadata."""
    model.metadata_props[PLACEMENT_KEY] = placement.text()


def placement_of(model: ir.Model) -> ExpertPlacement | None:
    """Read the placement of a model's experts; None where they are all on each rank. Raises MoecError if the metadata
    is no placement."""
    text = model.metadata_props.get(PLACEMENT_KEY)
    return None if text is None else read_placement(text, f"metadata {PLACEMENT_KEY}")


def set_layer(node: ir.Node, layer: int) -> None:
    """Record the number of a node's layer in the placement."""
    node.metadata_props[LAYER_KEY] = str(layer)


def layer_of(node: ir.Node) -> int | None:
    """Read the number of a node's layer in the placement; None for experts that are all on each rank. Raises MoecError
    for metadata of another form."""
    text = node.metadata_props.get(LAYER_KEY)
    if text is not None and not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise MoecError(f"metadata {LAYER_KEY!r} is {text[:80]!r}; expected a number; remove it from the model")
    return None if text is None else int(text)
