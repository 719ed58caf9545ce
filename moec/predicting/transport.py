"""The transport of rows for an artifact whose experts move to other ranks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

import numpy as np

from moec.common.errors import MoecError
from moec.placing.placement import ExpertPlacement
from moec.placing.volume import ExchangedLayer, TransportChoice, choose_for_all
from moec.predicting.artifact import row_bytes
from moec.profiles import Profile
from moec.runtime.artifact import Artifact


def transport_on(
    artifact: Artifact, placement: ExpertPlacement, profile: str | os.PathLike[str] | None = None
) -> TransportChoice:
    """Choose a transport for a placement whose layers have the artifact's names, as the pass ``place-experts`` does.
    ``profile``: one that has the layers in this order, with the experts that tokens selected; without it these are
    chosen evenly."""
    blocks = {block["name"]: block for block in artifact.manifest.moe_blocks}
    rows = []
    for layer, recorded in zip(placement.layers, _recorded(profile, len(placement.layers)), strict=True):
        with contextlib.suppress(KeyError, MoecError):  # another layer has known sizes, or none does
            block = blocks[layer.name]
            rows.append(ExchangedLayer(layer, block["top_k"] or 1, row_bytes(block), recorded))
    return choose_for_all(rows, placement.nodes)


def _recorded(profile: str | os.PathLike[str] | None, layers: int) -> Sequence[np.ndarray | None]:
    if profile is None:
        return [None] * layers
    with contextlib.closing(Profile.read(profile)) as measured:
        return [layer.recorded() for layer in measured.all_experts()]
