"""Rounding of activations to 8 or 4 bits, for weights that are already stored in 8 bits or fewer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence, Set
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError
from moec.common.names import node_name
from moec.ir.dialect import ProductSpec, is_moec
from moec.ir.weight_operands import weight_inputs
from moec.ir.weights.format import MX_GROUP, NV_GROUP, FormatName, WeightFormat
from moec.passes.framework.base import Exactness, Report
from moec.passes.weights.change_formats import readable_layer
from moec.passes.weights.choice import fit_bytes, input_sizes, quantize_activations
from moec.passes.weights.linears import becomes_logits
from moec.passes.weights.loss import Layer, layer_of, loss
from moec.passes.weights.store import set_arithmetic

LARGEST_GROUP = 2**31 - 1
"""More than any row has."""


MEASURED_LAYERS = 8
"""Number of layers whose errors are measured, evenly spaced: weights do not change, and reading all of a large model
takes minutes."""
Format = Literal["fp8", "int8", "mxfp8", "mxfp4", "nvfp4"]


@dataclasses.dataclass(frozen=True)
class _FloatRows:
    """Activations as small floats: the ``group`` of inputs that share a scale by default, and the format that all
    weights have to have."""

    group: int
    weights: FormatName


_FLOATS: dict[Format, _FloatRows] = {
    "fp8": _FloatRows(
        128, "fp8"
    ),  # those of DeepSeek-V3 (arXiv 2412.19437, 3.3.2), and an instruction's step of kernels
    "mxfp8": _FloatRows(MX_GROUP, "mxfp4"),
    "mxfp4": _FloatRows(MX_GROUP, "mxfp4"),
    "nvfp4": _FloatRows(NV_GROUP, "nvfp4"),
}


@dataclasses.dataclass(frozen=True)
class RoundActivations:
    """Lets products round the rows that they multiply to ``format``, where their weights are stored in as few bits.

    1. Applies to all moec nodes that have weights (``experts``: all but ``moec.Linear``; ``linears``: those alone).
       Weights keep every bit: other passes stored them, or the file did.
    2. ``fp8`` is for weights that are all float8, ``mxfp8`` and ``mxfp4`` for those in mxfp4, ``nvfp4`` for those in
       nvfp4. ``int8`` is for weights of up to 8 bits that integer products take: integers with zero points, minima and
       scales of two levels or without, and floats of 4 bits. Nodes with other weights are left alone.
    3. So are nodes whose arithmetic is not float32. That of int8, which weights of 4 bits get when a pass stores them,
       is replaced by one of floats.
    4. ``int8`` leaves the products alone that make the logits of a router, where small errors choose other experts, and
       so do floats of 4 bits.
    5. ``group`` consecutive activations of a token share a scale, 0 for all; the last group may be shorter. Without it,
       groups are 128 for ``fp8``, 32 for ``mxfp8`` and ``mxfp4``, 16 for ``nvfp4``, and for ``int8`` those that
       quantize-experts chooses.
    6. The error of outputs goes into the report for up to 8 layers, evenly spaced.
    7. A model without such weights gets a warning, or with ``optional`` a note.

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

    ::

        (float[T,64] x) => (float[T,8] y) <float4e2m1[8,64] w, float8e8m0[8,2] scale> {
           decoded = DequantizeLinear <axis = 1, block_size = 32, output_dtype = 1> (w, scale)
           y = moec.Linear <activation_group = 32, arithmetic = "int8"> (x, decoded)
        }
            round-activations{format=mxfp8} ->
        (float[T,64] x) => (float[T,8] y) <float4e2m1[8,64] w, float8e8m0[8,2] scale> {
           decoded = DequantizeLinear <axis = 1, block_size = 32, output_dtype = 1> (w, scale)
           y = moec.Linear <activation_group = 32, arithmetic = "mxfp8"> (x, decoded)
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
            tell(self.name, "model", f"nothing to round: no products have weights that are all {_taken(self.format)}")
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
        if not self._takes(formats) or before.spec.arithmetic not in self._replaced:
            actual = f"its weights are {before.describe_formats()}, its arithmetic is {before.spec.arithmetic}"
            expected = f"{_taken(self.format)} and {' or '.join(self._replaced)}"
            report.note(self.name, node_name(node), f"not rounded: {actual}; expected {expected}")
            return None
        if self.format not in ("fp8", "mxfp8") and becomes_logits(node.outputs[0]):
            report.note(self.name, node_name(node), "not rounded: it makes the logits of a router")
            return None
        if self.format == "int8":
            quantize_activations(node, formats, input_sizes(before), self.group)
        else:
            group = _FLOATS[self.format].group if self.group is None else self.group
            set_arithmetic(node, ProductSpec(arithmetic=self.format, activation_group=group))
        return before

    @property
    def _replaced(self) -> Sequence[str]:
        """The arithmetics that this one may replace."""
        return ("float32",) if self.format in ("fp8", "int8") else ("float32", "int8")

    def _takes(self, formats: Set[WeightFormat]) -> bool:
        if self.format == "int8":
            return fit_bytes(formats)
        return {form.name for form in formats} == {_FLOATS[self.format].weights}


def _taken(format_: Format) -> str:
    """The formats of weights beside which rows are rounded to ``format_``."""
    return "integers or 4-bit floats of up to 8 bits" if format_ == "int8" else _FLOATS[format_].weights
