"""``moec place``: experts of an artifact move to other ranks and other memory without compiling."""

from __future__ import annotations

import functools

from moec.cli.options import Artifact, Nodes, Plan, Profile, Ranks, Replicas, Resident
from moec.common.byte_counts import bytes_of
from moec.common.errors import MoecError


def place(
    artifact: Artifact,
    plan: Plan = None,
    ranks: Ranks = None,
    nodes: Nodes = 1,
    replicas: Replicas = 0,
    resident: Resident = None,
    profile: Profile = None,
) -> None:
    """Place the experts of an artifact on other ranks, or give them other memory, without compiling it again.

    ART was compiled with --ranks or --resident. Results stay the same.
    """
    from moec.artifacts.placing import place_anew
    from moec.placing.plan import read_plan
    from moec.predicting.transport import transport_on
    from moec.tools.planning import PlanTask, plan_artifact
    from moec.tools.planning_ranks import RanksTask

    if (plan is None) == (ranks is None and resident is None):
        raise MoecError("expected --plan, or --ranks and --resident")
    if ranks is None and (nodes != 1 or replicas or profile is not None):
        raise MoecError("--nodes, --replicas and --profile go with --ranks; a plan says all of it")
    if plan is not None:
        chosen, where = read_plan(plan), str(plan)
    else:
        task = PlanTask(
            ranks=None if ranks is None else RanksTask(ranks, nodes, replicas),
            resident=None if resident is None else bytes_of("resident", resident),
        )
        chosen, where = plan_artifact(artifact, task, profile), str(artifact)
    placed, reason = place_anew(artifact, chosen, functools.partial(transport_on, profile=profile), where)
    if placed.ranks is not None:
        print(f"{artifact}: {len(placed.layers)} layers are placed on {placed.ranks} ranks")
        print(f"rows go to other ranks by {placed.transport}: {reason}")
    if placed.resident is not None:
        print(f"{artifact}: weights of a process take at most {placed.resident} bytes of memory")
