"""``moec plan``: what each expert of a model is stored as, which ranks hold it and where it is in memory, as a file for
reading and editing."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from moec import targets
from moec.artifacts.placing import plan_in
from moec.common.errors import MoecError, reporting
from moec.common.progress import Progress, silent
from moec.common.replacing import replacing
from moec.common.scratch import ScratchFolder
from moec.compiling import compiler
from moec.compiling.compile_options import CompileOptions
from moec.passes import pipeline
from moec.passes.assign_bits import choices
from moec.passes.framework.base import Report
from moec.passes.weights.bits import WeightBudget
from moec.passes.weights.calibration import Method
from moec.passes.weights.judged_plan import Chosen, assignable, choose
from moec.placing.metadata import layers_of, planned_layers
from moec.placing.plan import ExpertPlan, LayerPlan
from moec.profiles import Profile
from moec.profiles.keys import numbered
from moec.runtime.artifact import open_artifact
from moec.runtime.machine import check_threads
from moec.runtime.manifest import MANIFEST
from moec.runtime.residents import ProgramWeights, predicted_share, weights_of, with_residents
from moec.tools.planning_ranks import RanksTask, place_on_ranks

_Path = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class FormatsTask:
    """Formats to choose; options are those of assign-bits."""

    budget: WeightBudget
    formats: str | None = None
    linears: bool = False
    sensitivities: _Path | None = None


@dataclasses.dataclass(frozen=True)
class PlanTask:
    """The tiers to plan; None leaves one out. ``resident``: bytes of memory for weights in a process. ``passes``: the
    pipeline that the model is compiled with; None for the default."""

    formats: FormatsTask | None = None
    ranks: RanksTask | None = None
    resident: int | None = None
    target: str = targets.DEFAULT
    passes: str | None = None


@reporting("planning")
def plan(source: _Path, task: PlanTask, profile: _Path | None = None, progress: Progress = silent) -> ExpertPlan:
    """Plan the experts of ``source``: a model, an artifact that was compiled for ranks or with less memory than it has
    weights, or, for ranks alone, a profile.

    Without a profile experts are placed, and kept in memory, by their number. The plan's ``notes`` say how it was made,
    and what it is predicted to be worth. Raises MoecError for a tier that cannot be planned from the source, and as
    assign-bits, :func:`moec.placing.place.place` and :func:`moec.runtime.residents.with_residents`.
    """
    path = pathlib.Path(source)
    if _holds(path, "profile.json"):
        return _from_profile(path, task)
    if _holds(path, MANIFEST):
        return plan_artifact(path, task, profile)
    return _from_model(path, task, profile, progress)


def write_plan(path: _Path, planned: ExpertPlan) -> None:
    """Write a plan where no file is: plans are edited by people. Raises MoecError."""
    with replacing(path, edited) as aside:
        aside.write_text(planned.text(), encoding="utf-8")


def edited(_path: pathlib.Path) -> str:
    """The reason why no plan is replaced."""
    return "is there already; plans are edited by people, so choose another path"


def _holds(path: pathlib.Path, name: str) -> bool:
    """Whether a folder or zip has a file of this name."""
    if path.is_dir():
        return (path / name).is_file()
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return name in archive.namelist()


def _from_profile(path: pathlib.Path, task: PlanTask) -> ExpertPlan:
    if task.formats is not None or task.resident is not None or task.ranks is None:
        raise MoecError(f"{path}: is a profile, by which ranks can be planned alone (ranks); give the model, too")
    with contextlib.closing(Profile.read(path)) as measured:
        measures = list(measured.all_experts())
    keys = numbered(layer.key for layer in measures)
    layers = tuple(LayerPlan(key, own.name, own.experts) for key, own in zip(keys, measures, strict=True))
    if not layers:
        raise MoecError(f"{path}: has no layers of experts; there is nothing to place")
    placed, remark = place_on_ranks(ExpertPlan(layers), task.ranks, path)
    return dataclasses.replace(placed, notes={"remarks": [remark]})


def plan_artifact(path: _Path, task: PlanTask, profile: _Path | None = None) -> ExpertPlan:
    """Plan an artifact anew, without compiling it. Raises MoecError as :func:`plan`."""
    if task.formats is not None:
        raise MoecError(f"{path}: is an artifact, whose weights are stored already; plan formats from the model")
    artifact, remarks = open_artifact(path), []
    planned = plan_in(artifact)
    if task.ranks is not None:
        if planned.ranks is None:
            raise MoecError(f"{path}: was compiled for one process; compile it with --ranks, then experts can be moved")
        planned, remark = place_on_ranks(planned, task.ranks, profile)
        remarks.append(remark)
    if task.resident is not None:
        planned = dataclasses.replace(planned, resident=task.resident)
    if planned.resident is not None and (task.ranks is not None or task.resident is not None):
        planned, remark = _resident(planned, weights_of(artifact.manifest), str(path))
        remarks.append(remark)
    return dataclasses.replace(planned, notes={"remarks": remarks} if remarks else {})


def _from_model(path: pathlib.Path, task: PlanTask, profile: _Path | None, progress: Progress) -> ExpertPlan:
    passes = task.passes or "O2"
    progress(f"running {passes}")
    graph = compiler.import_model(path, cache=False)
    pipeline.run(graph, pipeline.parse(passes), Report())
    nodes = layers_of(graph)
    is_planned = assignable(graph.graph, task.formats is not None and task.formats.linears)
    if not is_planned:
        raise MoecError(f"{path}: no MoE block was raised; there is nothing to plan")
    planned = ExpertPlan(planned_layers(nodes), device=targets.program_kind_of(task.target).name)
    notes: dict[str, Any] = {"passes": passes} | ({} if profile is None else {"profile": pathlib.Path(profile).name})
    remarks: list[str] = []
    if task.ranks is not None:
        progress("placing experts")
        planned, remark = place_on_ranks(planned, task.ranks, profile, nodes)
        remarks.append(remark)
    if task.formats is not None:
        progress("choosing formats")
        planned, entries = _with_formats(planned, graph, task.formats, profile)
        remarks += entries.pop("remarks")
        notes |= entries
    if task.resident is not None:
        planned = dataclasses.replace(planned, resident=task.resident)
        planned, remark = _resident_of_model(path, planned, task, profile, progress)
        remarks.append(remark)
    return dataclasses.replace(planned, notes={**notes, "remarks": remarks})


def _with_formats(
    planned: ExpertPlan, graph: ir.Model, task: FormatsTask, profile: _Path | None
) -> tuple[ExpertPlan, dict[str, Any]]:
    """Choose formats. Returns the plan with them, and notes about how they were selected and judged."""
    if profile is None:
        raise MoecError("formats are chosen by what a profile says of their errors; add one (profile)")
    with contextlib.closing(Profile.read(profile)) as measured:
        method, forms = _method(measured), choices(task.formats, measured)
        chosen = choose(graph, task.linears, measured, forms, task.budget, task.sensitivities, method)
    formats = {layer.layer: layer for layer in chosen.plans}
    layers = [dataclasses.replace(own, formats=formats.pop(own.layer, own).formats) for own in planned.layers]
    notes = {**task.budget.options, **_judged(chosen)}
    notes |= {} if task.sensitivities is None else {"sensitivities": pathlib.Path(task.sensitivities).name}
    return dataclasses.replace(planned, layers=(*layers, *formats.values()), method=method), notes


def _resident_of_model(
    path: pathlib.Path, planned: ExpertPlan, task: PlanTask, profile: _Path | None, progress: Progress
) -> tuple[ExpertPlan, str]:
    """Choose the experts that stay in memory by the places of weights in the compiled model, with rounding to nearest:
    no other takes other bytes."""
    with ScratchFolder() as folder:
        draft = pathlib.Path(folder, "plan.json")
        draft.write_text(dataclasses.replace(planned, method="rtn").text(), encoding="utf-8")
        options = CompileOptions(target=task.target, passes=task.passes, plan=draft, profile=profile, progress=progress)
        followed, programs = compiler.weights_in_memory(path, options)
    assert followed is not None, "a model that follows a plan has one"
    followed, remark = _resident(followed, programs, str(path))
    resident = {layer.layer: layer.resident for layer in followed.layers}
    layers = tuple(dataclasses.replace(own, resident=resident.get(own.layer, ())) for own in planned.layers)
    return dataclasses.replace(planned, layers=layers), remark


def _resident(planned: ExpertPlan, programs: Sequence[ProgramWeights], where: str) -> tuple[ExpertPlan, str]:
    """Keep the experts that are used most, with a remark about how many of the chosen ones are there."""
    planned = with_residents(planned, programs, where)
    share = predicted_share(planned, programs, where)
    if share is None:
        return (
            planned,
            "without a profile the use of experts is not known: those with low numbers stay in memory",
        )
    return planned, f"predicted: {share:.1%} of the experts that tokens choose are in memory before anything is read"


def _method(profile: Profile) -> Method:
    """Select the default rounding method of assign-bits: ``rtn`` where the profile has no second moments."""
    return "gptq" if any("/moment_in" in name for name in profile.names()) else "rtn"


def _judged(chosen: Chosen) -> dict[str, Any]:
    """Describe how the formats were selected and judged."""
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
