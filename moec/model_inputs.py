"""What a model says of its inputs before any pass has changed it, as its artifact keeps it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from moec.errors import reporting

if TYPE_CHECKING:
    import onnx_ir as ir

    from moec.common.specs import TensorSpec
    from moec.frontend.conditions import Conditions
    from moec.passes.framework.base import Report
    from moec.targets.base import Made


@dataclasses.dataclass(frozen=True)
class ModelInputs:
    """``limits``: the largest size of names of dimensions. ``sizes``: sizes that follow from others. ``counted``:
    names of inputs that count tokens. ``conditions``: what the exporter wrote of sizes that the model runs with."""

    limits: dict[str, int]
    sizes: dict[str, str]
    counted: list[str]
    specs: list[TensorSpec]
    conditions: Conditions

    def guards(self, graph: ir.Model, made: Made) -> list[str]:
        """The guards of what a target made; ``graph`` is what the passes made, which know more of the sizes inside."""
        from moec.frontend.conditions import settled
        from moec.passes.shapes.needed_sizes import needed_sizes

        return settled([*self.conditions.guards, *needed_sizes(graph)], self.specs, made.inputs)


def model_inputs(graph: ir.Model, source: Any, report: Report) -> ModelInputs:
    """The inputs of a model that no pass has changed; what it is limited to is reported."""
    from moec.common.specs import tensor_specs
    from moec.frontend.conditions import conditions_of
    from moec.passes.shapes.counted_inputs import counted_inputs
    from moec.passes.shapes.input_limits import input_limits
    from moec.passes.shapes.input_sizes import input_sizes

    with reporting("reading its inputs", source):
        specs = tensor_specs(graph.graph.inputs)
        found = ModelInputs(input_limits(graph), input_sizes(graph), counted_inputs(graph), specs, conditions_of(graph))
    found.conditions.report(specs, report)
    return found
