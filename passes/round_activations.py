"""Rounding of activations to 8 bits, for weights that are already stored in 8 bits or fewer."""

from __future__ import annotations

import dataclasses
from collections.abc import Set
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError
from moec.common.names import node_name
from moec.ir.dialect import ProductSpec, is_moec
from moec.ir.weight_operands import weight_inputs
from moec.ir.weights.format import WeightFormat
from moec.passes.framework.base import Exactness, Report
from moec.passes.weights.change_formats import readable_layer
from moec.passes.weights.choice import fit_bytes, input_sizes, quantize_activations
from moec.passes.weights.linears import becomes_logits
from moec.passes.weights.loss import Layer, layer_of, loss
from moec.passes.weights.store import set_arithmetic

FP8_GROUP = 128
"""Inputs that share a scale in DeepSeek-V3 (arXiv 2412.19437, 3.3.2), and an instruction's step of kernels."""
LARGEST_GROUP = 2**31 - 1
"""More than any row has."""


MEASURED_LAYERS = 8
"""Number of layers whose errors are measured, evenly spaced: weights do not change, and reading all of a large model
takes minutes."""
Format = Literal["fp8", "int8"]


@dataclasses.dataclass(frozen=True)
class RoundActivations:
    """Lets products round the rows that they multiply to ``format``, where their weights are stored in as few bits.

    1. Applies to all moec nodes that have weights (``experts``: all but ``moec.Linear``; ``linears``: those alone).
       Weights keep every bit: other passes stored them, or the file did.
    2. ``fp8`` is for weights that are all float8. ``int8`` is for weights of up to 8 bits that integer products take:
       integers with zero points, minima and scales of two levels or without, and floats of 4 bits. Nodes with other
       weights are left alone, and so are those whose arithmetic is not float32.
    3. ``int8`` leaves the products alone that make the logits of a router, where small errors choose other experts.
    4. ``group`` consecutive activations of a token share a scale, 0 for all; the last group may be shorter. Without it,
       groups are 128 for ``fp8``, and for ``int8`` those that quantize-experts chooses.
    5. The error of outputs goes into the report for up to 8 layers, evenly spaced.
    6. A model without such weights gets a warning, or with ``optional`` a note.

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

    ::

        (float[T,64] x) => (float[T,8] y) <int4[8,64] w, float16[8,2] scale> {
           decoded = DequantizeLinear <axis = 1, block_size = 32, output_dtype = 1> (w, scale)
           y = moec.Linear (x, decoded)
        }
            round-activations{format=int8} ->
        (float[T,64] x) => (float[T,8] y) <int4[8,64] w, float16[8,2] scale> {
           decoded = DequantizeLinear <axis = 1, block_size = 32, output_dtype = 1> (w, scale)
           y = moec.Linear <activation_group = 32, arithmetic = "int8"> (x, decoded)
        }
    """

    name: ClassVar[str] = "round-activations"
    exactness: ClassVar[Exactness] = "lossy"

    format: Format = "fp8"
    weights: Literal["experts", "linears", "all"] = "all"
    group: int | None = None
    optional: bool = False

    def apply(self, model: ir.Model, report: Report) -> bool:
        if self.group is not None and not 0 <= self.group <= LARGEST_GROUP:
            expected = f"a positive number of at most {LARGEST_GROUP}, or 0 for one per token"
            raise MoecError(f"{self.name}: group is {self.group}; expected {expected}")
        nodes = [node for node in model.graph if self._is_meant(node) and weight_inputs(node)]
        rounded = [before for node in nodes if (before := self._rounded(node, report)) is not None]
        if not rounded:
            tell = report.note if self.optional else report.warn
            tell(self.name, "model", f"nothing to round: no products have weights that are all {_TAKEN[self.format]}")
        for place in sorted({round(at) for at in np.linspace(0, len(rounded) - 1, min(len(rounded), MEASURED_LAYERS))}):
            report.losses.append(loss(self.name, rounded[place], layer_of(rounded[place].node)))
        return bool(rounded)

    def _is_meant(self, node: ir.Node) -> bool:
        if not is_moec(node) or self.weights == "all":
            return is_moec(node)
        return (node.op_type == "Linear") == (self.weights == "linears")

    def _rounded(self, node: ir.Node, report: Report) -> Layer | None:
        """Round the rows of a node's products and return the layer as it was before; None, with a remark, if they
        stay."""
        before = readable_layer(self.name, node, report)
        if before is None:
            return None
        formats = {form for weight in before.weights.values() for form in weight.formats}
        if not self._takes(formats) or before.spec.arithmetic != "float32":
            actual = f"its weights are {before.describe_formats()}, its arithmetic is {before.spec.arithmetic}"
            report.note(
                self.name, node_name(node), f"not rounded: {actual}; expected {_TAKEN[self.format]} and float32"
            )
            return None
        if self.format == "fp8":
            group = FP8_GROUP if self.group is None else self.group
            set_arithmetic(node, ProductSpec(arithmetic="fp8", activation_group=group))
        elif becomes_logits(node.outputs[0]):
            report.note(self.name, node_name(node), "not rounded: it makes the logits of a router")
            return None
        else:
            quantize_activations(node, formats, input_sizes(before), self.group)
        return before

    def _takes(self, formats: Set[WeightFormat]) -> bool:
        return fit_bytes(formats) if self.format == "int8" else {form.name for form in formats} == {self.format}


_TAKEN: dict[Format, str] = {"fp8": "fp8", "int8": "integers or 4-bit floats of up to 8 bits"}
