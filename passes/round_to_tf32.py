"""Products in tf32, which tensor cores of NVIDIA's GPUs multiply."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.names import node_name
from moec.ir.dialect import ProductSpec
from moec.ir.products import rounded_to_tf32
from moec.ir.weight_operands import weight_inputs
from moec.passes.framework.base import Exactness, Report
from moec.passes.weights.linears import MINIMUM, NONE_FOUND, products_of
from moec.passes.weights.loss import layer_of, loss
from moec.passes.weights.store import change_numbers, set_arithmetic


@dataclasses.dataclass(frozen=True)
class RoundToTf32:
    """Rounds float32 weights to tf32, which has 10 bits of fraction, and lets products round activations likewise.

    1. ``weights``, ``minimum`` and ``routers`` as for cast-weights. Weights keep their type and size.
    2. Nodes that have weights of another type are left alone, and so are those with another arithmetic already.
    3. The error of weights and outputs goes into the report, layer by layer.

    ::

        (float[T,64] x) => (float[T,8] y) <float[8,64] w> {
           y = moec.Linear (x, w)
        }
            round-to-tf32{minimum=0} ->
        (float[T,64] x) => (float[T,8] y) <float[8,64] w_changed> {
           y = moec.Linear <arithmetic = "tf32"> (x, w_changed)
        }
    """

    name: ClassVar[str] = "round-to-tf32"
    exactness: ClassVar[Exactness] = "lossy"

    weights: Literal["experts", "linears", "all"] = "all"
    routers: bool = False
    minimum: int = MINIMUM

    def apply(self, model: ir.Model, report: Report) -> bool:
        nodes = list(products_of(model.graph, self.weights, self.minimum, self.routers))
        if not nodes:
            report.warn(self.name, "model", f"nothing to round: no MoE block, and {NONE_FOUND.format(self.minimum)}")
        return any([self._round(node, report) for node in nodes])

    def _round(self, node: ir.Node, report: Report) -> bool:
        try:
            before = layer_of(node)
        except UnsupportedError as error:
            report.warn(self.name, node_name(node), f"not rounded: {error}")
            return False
        formats = {form.name for weight in before.weights.values() for form in weight.formats}
        if formats != {"float32"} or before.spec.arithmetic != "float32":
            reason = f"its weights are {before.describe_formats()}, its arithmetic is {before.spec.arithmetic}"
            report.note(self.name, node_name(node), f"not rounded: {reason}; expected float32 for all")
            return node.op_type == "Linear"
        for name in weight_inputs(node):
            change_numbers(node, name, lambda numbers, _expert: rounded_to_tf32(numbers))
        set_arithmetic(node, ProductSpec(arithmetic="tf32"))
        report.losses.append(loss(self.name, before, layer_of(node)))
        return True
