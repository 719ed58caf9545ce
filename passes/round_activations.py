"""Activations in 8 bits, beside weights that are stored in 8 bits already."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import onnx_ir as ir

from moec.errors import MoecError
from moec.ir.dialect import ProductSpec, is_moec
from moec.ir.names import node_name
from moec.ir.weights.stored import weight_inputs
from moec.passes.framework.base import Exactness, Report
from moec.passes.weights.change_formats import readable_layer
from moec.passes.weights.loss import layer_of, loss
from moec.passes.weights.store import set_arithmetic

FP8_GROUP = 128
"""Inputs that share a scale in DeepSeek-V3 (arXiv 2412.19437, 3.3.2), and an instruction's step of kernels."""
LARGEST_GROUP = 2**31 - 1
"""More than any row has."""


@dataclasses.dataclass(frozen=True)
class RoundActivations:
    """Lets products round the rows that they multiply to ``format``, where their weights are stored in it.

    1. Applies to all moec nodes that have weights (``experts``: all but ``moec.Linear``; ``linears``: those alone).
       Weights stay as they are: other passes store them, or the checkpoint did.
    2. Nodes whose weights are not all in ``format`` are left alone, and so are those whose arithmetic is not float32.
    3. ``group`` consecutive activations of a token share a scale, 0 for all; the last group may be shorter.
    4. The error of outputs goes into the report, layer by layer.

    ::

        (float[T,64] x) => (float[T,8] y) <float8e4m3fn[8,64] w, float[8,1] scale> {
           decoded = DequantizeLinear <axis = 1, block_size = 64> (w, scale)
           y = moec.Linear (x, decoded)
        }
            round-activations ->
        (float[T,64] x) => (float[T,8] y) <float8e4m3fn[8,64] w, float[8,1] scale> {
           decoded = DequantizeLinear <axis = 1, block_size = 64> (w, scale)
           y = moec.Linear <activation_group = 128, arithmetic = "fp8"> (x, decoded)
        }
    """

    name: ClassVar[str] = "round-activations"
    exactness: ClassVar[Exactness] = "lossy"

    format: Literal["fp8"] = "fp8"
    weights: Literal["experts", "linears", "all"] = "all"
    group: int = FP8_GROUP

    def apply(self, model: ir.Model, report: Report) -> bool:
        if not 0 <= self.group <= LARGEST_GROUP:
            expected = f"a positive number of at most {LARGEST_GROUP}, or 0 for one per token"
            raise MoecError(f"{self.name}: group is {self.group}; expected {expected}")
        nodes = [node for node in model.graph if self._is_meant(node) and weight_inputs(node)]
        changed = [self._round(node, report) for node in nodes]
        if not any(changed):
            report.warn(self.name, "model", f"nothing to round: no products have weights that are all {self.format}")
        return any(changed)

    def _is_meant(self, node: ir.Node) -> bool:
        if not is_moec(node) or self.weights == "all":
            return is_moec(node)
        return (node.op_type == "Linear") == (self.weights == "linears")

    def _round(self, node: ir.Node, report: Report) -> bool:
        before = readable_layer(self.name, node, report)
        if before is None:
            return False
        formats = {form.name for weight in before.weights.values() for form in weight.formats}
        if formats != {self.format} or before.spec.arithmetic != "float32":
            found = f"its weights are {before.describe_formats()}, its arithmetic is {before.spec.arithmetic}"
            report.note(self.name, node_name(node), f"not rounded: {found}; expected {self.format} and float32")
            return False
        set_arithmetic(node, ProductSpec(arithmetic=self.format, activation_group=self.group))
        report.losses.append(loss(self.name, before, layer_of(node)))
        return True
