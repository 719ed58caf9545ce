"""``moec plan``: the formats that assign-bits would choose, as a file to read and edit."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections import Counter
from typing import Any

from moec import compiler, targets
from moec.common.progress import Progress, silent
from moec.common.replacing import check_replaceable, replacing
from moec.errors import MoecError, reporting
from moec.passes.assign_bits import choices
from moec.passes.framework import pipeline
from moec.passes.framework.base import Report
from moec.passes.weights.bits import WeightBudget
from moec.passes.weights.calibration import Method
from moec.passes.weights.judged_plan import Chosen, assignable, choose
from moec.passes.weights.plan import plan_text
from moec.profile import Profile
from moec.runtime.machine import check_threads


@dataclasses.dataclass(frozen=True)
class Planned:
    """The number of experts' weights of a layer that get each format."""

    name: str
    formats: dict[str, dict[str, int]]


@reporting("planning")
def write_plan(
    model: str | os.PathLike[str],
    profile: str | os.PathLike[str],
    budget: WeightBudget,
    output: str | os.PathLike[str],
    *,
    passes: str = "O2",
    formats: str | None = None,
    linears: bool = False,
    sensitivities: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> list[Planned]:
    """Write the plan of a model after ``passes``; options as those of assign-bits. Raises MoecError as that does, and
    where a file is there already: plans are edited by people."""
    check_replaceable(output, _edited)
    progress(f"running {passes}")
    graph = compiler.import_model(model, cache=False)
    pipeline.run(graph, pipeline.parse(passes), Report())
    if not assignable(graph.graph, linears):
        raise MoecError(f"{os.fspath(model)}: no MoE block was raised; there is nothing to plan")
    progress("choosing formats")
    with contextlib.closing(Profile.read(profile)) as known:
        method = _method(known)
        chosen = choose(graph, linears, known, choices(formats, known), budget, sensitivities, method)
    told = {"profile": pathlib.Path(profile).name, **budget.told, "passes": passes, "method": method}
    told |= _judged(chosen)
    told |= {} if sensitivities is None else {"sensitivities": pathlib.Path(sensitivities).name}
    with replacing(output, _edited) as aside:
        aside.write_text(plan_text(chosen.plans, told), encoding="utf-8")
    return [
        Planned(plan.name, {name: dict(Counter(formats)) for name, formats in plan.formats.items()})
        for plan in chosen.plans
    ]


def _method(profile: Profile) -> Method:
    """What assign-bits rounds by, unless it is told otherwise; to nearest, where the profile has no second moments."""
    return "gptq" if any("/moment_in" in name for name in profile.names()) else "rtn"


def _judged(chosen: Chosen) -> dict[str, Any]:
    """What a plan says of how it was chosen."""
    judged = chosen.judgement
    told: dict[str, Any] = {"remarks": chosen.remarks}
    if judged is not None:
        told["judged"] = {"taken": judged.taken, "plan": judged.plan, judged.rival: judged.uniform}
    return told


def budget_of(
    average: float | None,
    megabytes: float | None,
    microseconds: float | None,
    gigabytes_per_second: float | None,
) -> WeightBudget:
    """The budget; where it is a time and nobody says how fast memory is, as all cores of this machine read it, in three
    digits: that takes about a second. Raises MoecError for amounts that are none."""
    if microseconds is None:
        return WeightBudget(average, megabytes)
    if gigabytes_per_second is None:
        roofline = targets.program_kind_of(targets.DEFAULT).measure_roofline(check_threads(None))
        gigabytes_per_second = float(f"{roofline.bandwidth / 1e9:.3g}")
    return WeightBudget(average, megabytes, microseconds, gigabytes_per_second)


def _edited(_path: pathlib.Path) -> str:
    return "is there already; plans are edited by people, so choose another path"
