"""``moec place``: experts of an artifact move to other ranks without compiling."""

from __future__ import annotations

import functools
from typing import Annotated

import typer

from moec.cli.options import Artifact, Nodes, Placement, Profile, Replicas
from moec.common.errors import MoecError


def place(
    artifact: Artifact,
    placement: Placement = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Place experts on this many ranks instead of those in a file.")
    ] = None,
    nodes: Nodes = 1,
    replicas: Replicas = 0,
    profile: Profile = None,
) -> None:
    """Place the experts of an artifact on other ranks, without compiling it again.

    ART was compiled with --ranks. Results stay the same.
    """
    from moec.artifacts.placing import place_anew, placement_on
    from moec.placing.placement import read_placement_file
    from moec.predicting.transport import transport_on

    if (placement is None) == (ranks is None):
        raise MoecError("expected one of --placement and --ranks")
    if placement is not None:
        if nodes != 1 or replicas or profile is not None:
            raise MoecError("--nodes, --replicas and --profile go with --ranks; a file says all of it")
        chosen = read_placement_file(placement)
    else:
        assert ranks is not None, "one of both was given"
        chosen = placement_on(artifact, ranks, nodes, replicas, profile)
    placed, reason = place_anew(artifact, chosen, functools.partial(transport_on, profile=profile))
    print(f"{artifact}: {len(placed.layers)} layers are placed on {placed.ranks} ranks")
    print(f"rows go to other ranks by {placed.transport}: {reason}")
