"""Dense layers' weights in 8 bits or fewer."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from moec.common.progress import reported
from moec.ir.weight_operands import size_of_weights
from moec.ir.weights.format import QuantizedName
from moec.passes.framework.base import Exactness, Report
from moec.passes.weights.calibration import Method, opened
from moec.passes.weights.change_formats import change_formats, readable_layer
from moec.passes.weights.choice import ScaleOptions, input_sizes, resolve_format
from moec.passes.weights.linears import MINIMUM, NONE_FOUND, make_linears
from moec.profiles import Profile


@dataclasses.dataclass(frozen=True)
class QuantizeLinears:
    """Stores the weights of dense products in ``format`` and quantises activations to match.

    1. A MatMul with a constant matrix on the right, with the constant bias [N] that an Add may give its result, and a
       Gemm that multiplies by one and at most adds a bias [N], become ``moec.Linear``; Linear nodes that are there
       already are quantised likewise.
    2. Left alone: weights of fewer than ``minimum`` elements, those that are quantised already, and (without
       ``routers``) the products that make the logits of a router, where small errors choose other experts.
    3. ``group``, ``zero_points``, ``minima``, ``super_group``, ``activation_group``, ``method`` and ``profile`` as for
       quantize-experts.
    4. A weight with an infinity or a NaN is an error: only floats can hold it.
    5. The error of weight and output goes into the report, layer by layer.

    ::

        (float[T,64] x) => (float[T,8] y) <float[64,8] w> {
           y = MatMul (x, w)
        }
            quantize-linears{format=int8,minimum=0} ->
        (float[T,64] x) => (float[T,8] y) <int8[64,8] w_int8, float[1,8] w_int8_scale> {
           w_decoded = DequantizeLinear <axis = 0, block_size = 64, output_dtype = 1> (w_int8, w_int8_scale)
           y = moec.Linear <activation_group = 64, arithmetic = "int8", transposed = 1> (x, w_decoded)
        }
    """

    name: ClassVar[str] = "quantize-linears"
    exactness: ClassVar[Exactness] = "lossy"

    format: QuantizedName
    group: int | None = None
    zero_points: bool = False
    minima: bool = False
    super_group: int = 0
    activation_group: int | None = None
    routers: bool = False
    minimum: int = MINIMUM
    method: Method = "rtn"
    profile: str | None = None

    @property
    def _scales(self) -> ScaleOptions:
        return ScaleOptions(self.group, self.zero_points, self.minima, self.super_group)

    def apply(self, model: ir.Model, report: Report) -> bool:
        self._scales.check(self.name, {self.format}, self.method)
        nodes = list(make_linears(model.graph, self.minimum, self.routers))
        if not nodes:
            report.warn(self.name, "model", f"nothing to quantise: {NONE_FOUND.format(self.minimum)}")
        with opened(self.name, self.method, self.profile) as profile:
            for node in reported(nodes, size_of_weights, report.progress, self.name, "layer"):
                self._quantize(node, profile, report)
        return bool(nodes)

    def _quantize(self, node: ir.Node, profile: Profile | None, report: Report) -> None:
        before = readable_layer(self.name, node, report)
        if before is None:
            return
        (form,) = before.weights["weight"].formats
        if not form.quantized:
            form = resolve_format(self.format, self._scales, input_sizes(before))
        change_formats(self.name, before, {"weight": [form]}, profile, self.method, report, self.activation_group)
