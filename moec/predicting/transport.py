"""The transport of rows for an artifact whose experts move to other ranks."""

from __future__ import annotations

import contextlib

from moec.common.errors import MoecError
from moec.placing.placement import ExpertPlacement
from moec.placing.volume import TransportChoice, choose_transport
from moec.predicting.artifact import row_bytes
from moec.runtime.artifact import Artifact


def transport_on(artifact: Artifact, placement: ExpertPlacement) -> TransportChoice:
    """Choose a transport for a placement whose layers have the artifact's names: by the layer whose rows are largest,
    as the pass ``place-experts`` does, with experts that are chosen evenly."""
    blocks = {block["name"]: block for block in artifact.manifest.moe_blocks}
    sizes = []
    for layer in placement.layers:
        with contextlib.suppress(KeyError, MoecError):  # another layer has known sizes, or none does
            block = blocks[layer.name]
            sizes.append((layer, block["top_k"] or 1, row_bytes(block)))
    if not sizes:
        return TransportChoice("alltoall", "sizes of rows are not known")
    layer, k, width = max(sizes, key=lambda each: each[1] * each[2].out)
    return choose_transport(layer, k, width, placement.nodes)
