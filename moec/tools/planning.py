"""``moec plan``: write the formats that assign-bits would select into a file, for reading and editing."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections import Counter
from typing import Any

from moec import targets
from moec.common.errors import MoecError, reporting
from moec.common.progress import Progress, silent
from moec.common.replacing import check_replaceable, replacing
from moec.compiling import compiler
from moec.passes import pipeline
from moec.passes.assign_bits import choices
from moec.passes.framework.base import Report
from moec.passes.weights.bits import WeightBudget
from moec.passes.weights.calibration import Method
from moec.passes.weights.judged_plan import Chosen, assignable, choose
from moec.passes.weights.plan import plan_text
from moec.profiles import Profile
from moec.runtime.machine import check_threads


@dataclasses.dataclass(frozen=True)
class Planned:
    """Number of experts' weights of a layer in each format."""

    name: str
    formats: dict[str, dict[str, int]]


@reporting("planning")
def plan(
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
    """Write the plan of a model after ``passes``; options are those of assign-bits. Raises MoecError as assign-bits
    does, and where a file exists already, because plans are edited by people."""
    check_replaceable(output, _edited)
    progress(f"running {passes}")
    graph = compiler.import_model(model, cache=False)
    pipeline.run(graph, pipeline.parse(passes), Report())
    if not assignable(graph.graph, linears):
        raise MoecError(f"{os.fspath(model)}: no MoE block was raised; there is nothing to plan")
    progress("choosing formats")
    with contextlib.closing(Profile.read(profile)) as measured:
        method = _method(measured)
        chosen = choose(graph, linears, measured, choices(formats, measured), budget, sensitivities, method)
    header = {"profile": pathlib.Path(profile).name, **budget.options, "passes": passes, "method": method}
    header |= _judged(chosen)
    header |= {} if sensitivities is None else {"sensitivities": pathlib.Path(sensitivities).name}
    write_plan(output, plan_text(chosen.plans, header))
    return [
        Planned(plan.name, {name: dict(Counter(formats)) for name, formats in plan.formats.items()})
        for plan in chosen.plans
    ]


def write_plan(path: str | os.PathLike[str], text: str) -> None:
    """Write a plan where no file is. Raises MoecError."""
    with replacing(path, _edited) as aside:
        aside.write_text(text, encoding="utf-8")


def _method(profile: Profile) -> Method:
    """Select the default rounding method of assign-bits: ``rtn`` where the profile has no second moments."""
    return "gptq" if any("/moment_in" in name for name in profile.names()) else "rtn"


def _judged(chosen: Chosen) -> dict[str, Any]:
    """Describe, for the plan's header, how the formats were selected and judged."""
    judged = chosen.judgement
    entries: dict[str, Any] = {"remarks": chosen.remarks}
    if judged is not None:
        entries["judged"] = {"taken": judged.taken, "plan": judged.plan, judged.rival: judged.uniform}
    return entries


def budget_of(
    average: float | None,
    megabytes: float | None,
    microseconds: float | None,
    gigabytes_per_second: float | None,
) -> WeightBudget:
    """Make the budget. A time needs the speed of memory; if that is not given, it is measured with all cores of this
    machine, to three digits, in about a second. Raises MoecError for invalid amounts."""
    if microseconds is None:
        return WeightBudget(average, megabytes)
    if gigabytes_per_second is None:
        roofline = targets.program_kind_of(targets.DEFAULT).measure_roofline(check_threads(None))
        gigabytes_per_second = float(f"{roofline.bandwidth / 1e9:.3g}")
    return WeightBudget(average, megabytes, microseconds, gigabytes_per_second)


def _edited(_path: pathlib.Path) -> str:
    return "is there already; plans are edited by people, so choose another path"
