"""A plan of ranks and memory, from a file, that later passes follow."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from moec.common.errors import MoecError
from moec.passes.framework.base import Exactness, Report
from moec.placing.metadata import layers_of, number_layers, planned_layers
from moec.placing.plan import ExpertPlan, read_plan


@dataclasses.dataclass(frozen=True)
class FollowPlan:
    """Records the plan in a file on the model, for passes and targets that place experts on ranks and in memory. It
    changes no result.

    1. The plan has an entry for every layer of experts, with as many experts. Layers are recognised by their weights
       (:mod:`moec.profiles.keys`), and those with the same weights by their order, so this pass comes before those that
       round weights. A plan of another model is refused.
    2. The model's metadata gets these entries, in the order of the graph, with the names of its nodes; each node gets
       the number of its entry (:mod:`moec.placing.metadata`).
    3. Formats are applied by ``assign-bits{plan=FILE}``, ranks by ``place-experts``, memory by ``stream-experts`` and
       the runtime.

    ::

        (float[T,4] x, float[T,2] a) => (float[T,4] y) <float[2,3,4] up, float[2,4,3] down> {
           y = moec.MoE <gate_layout = "none", k = 1> (x, a, , up, down)
        }
            follow-plan{plan=PLAN} ->
        (float[T,4] x, float[T,2] a) => (float[T,4] y) <float[2,3,4] up, float[2,4,3] down> {
           y = moec.MoE <gate_layout = "none", k = 1> (x, a, , up, down)
        }
    """

    name: ClassVar[str] = "follow-plan"
    exactness: ClassVar[Exactness] = "exact"

    plan: str = ""

    def apply(self, model: ir.Model, report: Report) -> bool:
        number_layers(model, self._of_model(read_plan(self.plan), model))
        return True

    def _of_model(self, plan: ExpertPlan, model: ir.Model) -> ExpertPlan:
        """Return the plan with the layers of the model, in their order. Raises MoecError for one of another model."""
        layers = []
        for own, layer in plan.matched(planned_layers(layers_of(model)), self.plan, "this model"):
            if layer is None:
                raise MoecError(
                    f"{self.plan}: has no layer {own.layer}, which is {own.name} of this model; expected a plan "
                    "of this model after the same passes; make it with moec plan"
                )
            if layer.experts != own.experts:
                raise MoecError(f"{self.plan}: {layer.where}: experts is {layer.experts}; the model has {own.experts}")
            layers.append(dataclasses.replace(layer, name=own.name, formats={}))
        return dataclasses.replace(plan, layers=tuple(layers), notes={})
