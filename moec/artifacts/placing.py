"""Experts of an artifact on other ranks and in other memory: another plan in its manifest, and the same program and
weights."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping

from moec.common.errors import MoecError, reporting
from moec.common.replacing import replacing
from moec.ir.weights.format import ELEMENTS
from moec.placing.placement import ExpertPlacement
from moec.placing.plan import KEEP, ExpertPlan, LayerPlan
from moec.placing.volume import TransportChoice
from moec.runtime.artifact import Artifact, open_artifact
from moec.runtime.artifact_folder import copy_artifact
from moec.runtime.manifest import MANIFEST, print_manifest
from moec.runtime.residents import check_resident, weights_of

_FLOATS = {name for name, elements in ELEMENTS.items() if not elements.scales}


def plan_in(artifact: Artifact) -> ExpertPlan:
    """The plan that an artifact follows, with the formats of its experts. Raises MoecError for an artifact that was
    compiled for one process with all weights in memory."""
    plan = artifact.manifest.plan
    if plan is None:
        raise MoecError(
            f"{artifact.where}: was compiled for one process with all weights in memory; compile it with --ranks or "
            "--resident, then its experts can be moved"
        )
    formats = {block["name"]: _planned_formats(block.get("formats", {})) for block in artifact.manifest.moe_blocks}
    layers = tuple(dataclasses.replace(layer, formats=formats.get(layer.name, {})) for layer in plan.layers)
    return dataclasses.replace(plan, layers=layers)


def _planned_formats(formats: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Formats of a block as a plan writes them: floating-point weights were kept."""
    planned = {name: [KEEP if form in _FLOATS else form for form in own] for name, own in formats.items()}
    return planned if any(form != KEEP for own in planned.values() for form in own) else {}


@reporting("placing experts")
def place_anew(
    path: str | os.PathLike[str],
    plan: ExpertPlan,
    choose: Callable[[Artifact, ExpertPlacement], TransportChoice],
    where: str = "the plan",
) -> tuple[ExpertPlan, str]:
    """Write the ranks and the memory of another plan into the artifact at ``path``. In a folder this rewrites the
    manifest alone, in one step; a zip is written anew. Where the plan names no transport of rows, ``choose`` does.
    Returns the plan as written, and the reason for its transport. ``where``: the plan's file, for messages.

    Raises MoecError for a plan of another model, for one whose formats, device or kind of ranks need another
    compilation, and for memory in which a process cannot run."""
    artifact = open_artifact(path)
    plan, reason = _fitted(plan, plan_in(artifact), where), ""
    if plan.placement is not None:
        choice = choose(artifact, plan.placement)
        if plan.transport is not None:
            choice = TransportChoice(plan.transport, "the plan says so")
        plan, reason = dataclasses.replace(plan, transport=choice.transport), choice.reason
    if plan.resident is not None:
        check_resident(plan, weights_of(artifact.manifest), where)
    artifact.manifest.plan = plan
    folder = pathlib.Path(path)
    if folder.is_dir():
        with replacing(folder / MANIFEST, lambda _: None) as aside:  # the manifest that was read above
            aside.write_text(print_manifest(artifact.manifest), encoding="utf-8")
    else:
        copy_artifact(artifact, path)
    return plan, reason


def _fitted(plan: ExpertPlan, before: ExpertPlan, where: str) -> ExpertPlan:
    """The plan for the artifact that follows ``before``, with its layers in their order. Raises MoecError for parts
    that need another compilation."""
    if plan.device != before.device:
        raise MoecError(f"{where}: device is {plan.device!r}; the artifact is for {before.device!r}: {_COMPILE}")
    if (plan.ranks is None) != (before.ranks is None):
        kinds = [f"{each.ranks} ranks" if each.ranks is not None else "one process" for each in (plan, before)]
        raise MoecError(f"{where}: is for {kinds[0]}; the artifact was compiled for {kinds[1]}: {_COMPILE}")
    layers = []
    for own, layer in plan.matched(before.layers, where, "the artifact"):
        if layer is None or layer.experts != own.experts:
            raise MoecError(
                f"{where}: has no {own.where} of {own.experts} experts, which the artifact has; expected a plan of its "
                "model; make it with moec plan"
            )
        _check_formats(layer, own, where)
        layers.append(dataclasses.replace(layer, name=own.name, formats={}))
    return dataclasses.replace(plan, layers=tuple(layers), method=before.method, notes={})


_COMPILE = "compile the model with moec compile --plan"


def _check_formats(layer: LayerPlan, own: LayerPlan, where: str) -> None:
    """Raise MoecError where a plan has other formats than the artifact, whose weights are stored already."""
    for operand, formats in layer.formats.items():
        stored = own.formats.get(operand, [KEEP] * own.experts)
        expert = next((at for at, pair in enumerate(zip(formats, stored, strict=True)) if pair[0] != pair[1]), None)
        if expert is not None:
            raise MoecError(
                f"{where}: {layer.where}: formats.{operand}[{expert}] is {formats[expert]!r}, and the artifact stores "
                f"{stored[expert]!r}: {_COMPILE}"
            )
