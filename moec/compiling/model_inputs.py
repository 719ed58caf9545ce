"""Facts about a model's inputs before any pass has changed it, which its artifact keeps."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from moec.common.errors import reporting

if TYPE_CHECKING:
    import onnx_ir as ir

    from moec.common.specs import TensorSpec
    from moec.frontend.onnx.conditions import Conditions
    from moec.passes.framework.base import Report
    from moec.targets.base import Made


@dataclasses.dataclass(frozen=True)
class ModelInputs:
    """Inputs of a model. ``limits``: bounds of integer inputs that index something. ``sizes``: sizes that follow from
    others. ``counted``: inputs whose values give lengths. ``conditions``: sizes that the model was exported for."""

    limits: dict[str, int]
    sizes: dict[str, str]
    counted: list[str]
    specs: list[TensorSpec]
    conditions: Conditions

    def guards(self, graph: ir.Model, program: Made) -> list[str]:
        """Collect the guards of a target's result. ``graph`` is the model after the passes, which have derived more
        sizes."""
        from moec.frontend.onnx.conditions import settled
        from moec.passes.shapes.needed_sizes import needed_sizes

        return settled([*self.conditions.guards, *needed_sizes(graph)], self.specs, program.inputs)


def model_inputs(graph: ir.Model, source: Any, report: Report) -> ModelInputs:
    """Read the inputs of a model before any pass. Their limits are reported."""
    from moec.common.specs import tensor_specs
    from moec.frontend.onnx.conditions import conditions_of
    from moec.passes.shapes.counted_inputs import counted_inputs
    from moec.passes.shapes.input_limits import input_limits
    from moec.passes.shapes.input_sizes import input_sizes

    with reporting("reading its inputs", source):
        specs = tensor_specs(graph.graph.inputs)
        result = ModelInputs(
            input_limits(graph), input_sizes(graph), counted_inputs(graph), specs, conditions_of(graph)
        )
    result.conditions.report(specs, report)
    return result
