"""Experts of an artifact on other ranks: another placement in its manifest, and the same program and weights."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable

from moec.common.errors import MoecError, reporting
from moec.common.replacing import replacing
from moec.placing.place import place_in_order, place_profile
from moec.placing.placement import ExpertPlacement
from moec.placing.volume import TransportChoice
from moec.runtime.artifact import Artifact, open_artifact
from moec.runtime.artifact_folder import copy_artifact
from moec.runtime.manifest import MANIFEST, print_manifest


@reporting("placing experts")
def placement_on(
    path: str | os.PathLike[str],
    ranks: int,
    nodes: int = 1,
    replicas: int = 0,
    profile: str | os.PathLike[str] | None = None,
) -> ExpertPlacement:
    """Find a placement of the artifact at ``path`` on other ranks: with a ``profile`` by the loads of experts, else
    consecutive experts on consecutive ranks. Raises MoecError as :func:`moec.placing.place.place`, and for an artifact
    that was compiled for one process."""
    before = _placement_of(open_artifact(path))
    if profile is not None:
        return place_profile(profile, ranks, nodes, replicas)
    return place_in_order([(layer.name, layer.experts) for layer in before.layers], ranks, nodes, replicas)


def _placement_of(artifact: Artifact) -> ExpertPlacement:
    placement = artifact.manifest.placement
    if placement is None:
        raise MoecError(
            f"{artifact.where}: was compiled for one process; compile it with --ranks, then its experts can be moved"
        )
    return placement


@reporting("placing experts")
def place_anew(
    path: str | os.PathLike[str],
    placement: ExpertPlacement,
    choose: Callable[[Artifact, ExpertPlacement], TransportChoice],
) -> tuple[ExpertPlacement, str]:
    """Write another placement into the artifact at ``path``. In a folder this rewrites the manifest alone, in one step;
    a zip is written anew. Layers keep their names. Where the placement names no transport of rows, ``choose``
    does. Returns the placement as written, and the reason for its transport.

    Raises MoecError for an artifact that was compiled for one process, and for a placement of other layers."""
    artifact = open_artifact(path)
    before = _placement_of(artifact)
    expected, actual = ([layer.experts for layer in each.layers] for each in (before, placement))
    if actual != expected:
        raise MoecError(f"{path}: has layers of {expected} experts; the placement is of layers of {actual}")
    pairs = zip(placement.layers, before.layers, strict=True)
    layers = tuple(dataclasses.replace(layer, name=own.name) for layer, own in pairs)
    placement = dataclasses.replace(placement, layers=layers)
    named = placement.transport
    choice = choose(artifact, placement) if named is None else TransportChoice(named, "the placement says so")
    placement = dataclasses.replace(placement, transport=choice.transport)
    artifact.manifest.placement = placement
    folder = pathlib.Path(path)
    if folder.is_dir():
        with replacing(folder / MANIFEST, lambda _: None) as aside:  # the manifest that was read above
            aside.write_text(print_manifest(artifact.manifest), encoding="utf-8")
    else:
        copy_artifact(artifact, path)
    return placement, choice.reason
