"""Plans of experts that tests write down by their slots."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from moec.compiling import compiler
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.placing.metadata import layers_of, planned_layers
from moec.placing.placement import ExpertPlacement, LayerPlacement
from moec.placing.plan import ExpertPlan

Slots = Sequence[Sequence[int]]
"""Experts of each rank."""


def plan_of(source: pathlib.Path | ir.Model, slots: Sequence[Slots] | None = None, **fields: Any) -> ExpertPlan:
    """Plan the layers of a model on ranks by their slots, or not on ranks at all. ``fields``: further ones of the
    plan."""
    model = source
    if isinstance(model, pathlib.Path):
        model = compiler.import_model(model, cache=False)
        pipeline.run(model, pipeline.parse("O2"), Report())
    plan = ExpertPlan(planned_layers(layers_of(model)), **fields)
    if slots is None:
        return plan
    layers = [
        LayerPlacement(layer.name, layer.experts, tuple(map(tuple, own)))
        for layer, own in zip(plan.layers, slots, strict=True)
    ]
    return plan.placed(ExpertPlacement(len(slots[0]), tuple(layers)))


def plan_file(path: pathlib.Path, source: pathlib.Path | ir.Model, slots: Sequence[Slots]) -> pathlib.Path:
    """Write such a plan to a file."""
    path.write_text(plan_of(source, slots).text())
    return path
