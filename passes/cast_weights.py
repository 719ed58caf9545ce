"""Weights in 16-bit floats."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.names import node_name
from moec.ir.dialect import ProductSpec
from moec.ir.weights.format import FormatName, WeightFormat
from moec.passes.framework.base import Exactness, Report
from moec.passes.weights.linears import MINIMUM, NONE_FOUND, products_of
from moec.passes.weights.loss import layer_of, loss
from moec.passes.weights.store import set_arithmetic, store

_NAMES: dict[str, FormatName] = {"bf16": "bfloat16", "fp16": "float16"}
_WIDE = ("float32", "float64")


@dataclasses.dataclass(frozen=True)
class CastWeights:
    """Stores float32 and float64 weights in half the bytes or less, rounded to nearest.

    1. ``weights``: those of ``experts`` (of ``moec.Experts``, ``moec.MoE`` and ``moec.GroupedMatMul``), of ``linears``
       (dense products become ``moec.Linear`` as in quantize-linears, with its ``minimum`` and ``routers``), or ``all``.
       Weights that are narrower already stay as they are.
    2. ``bf16``: if all weights of a node are bfloat16 afterwards, activations are rounded to bfloat16 too, so that
       products can be computed in it. ``fp16``: products are computed in float32.
    3. A finite weight beyond the range of float16 is an error; infinities and NaN do not change.
    4. The error of weights and outputs goes into the report, layer by layer.

    ::

        (float[T,6] x, float[T,4] logits) => (float[T,6] y) <float[4,10,6] up, float[4,6,5] down> {
           y = moec.MoE <k = 2> (x, logits, , up, down)
        }
            cast-weights{dtype=bf16} ->
        (float[T,6] x, float[T,4] logits) => (float[T,6] y)
           <bfloat16[4,10,6] up_bfloat16, bfloat16[4,6,5] down_bfloat16> {
           up_decoded = Cast <to = 1> (up_bfloat16)
           down_decoded = Cast <to = 1> (down_bfloat16)
           y = moec.MoE <arithmetic = "bfloat16", k = 2> (x, logits, , up_decoded, down_decoded)
        }
    """

    name: ClassVar[str] = "cast-weights"
    exactness: ClassVar[Exactness] = "lossy"

    dtype: Literal["bf16", "fp16"]
    weights: Literal["experts", "linears", "all"] = "experts"
    routers: bool = False
    minimum: int = MINIMUM

    def apply(self, model: ir.Model, report: Report) -> bool:
        nodes = list(products_of(model.graph, self.weights, self.minimum, self.routers))
        if not nodes:
            reason = NONE_FOUND.format(self.minimum)
            if self.weights == "experts":
                reason = "no MoE block was raised before this pass"
            report.warn(self.name, "model", f"nothing to cast: {reason}")
        return any([self._cast(node, report) for node in nodes])

    def _cast(self, node: ir.Node, report: Report) -> bool:
        try:
            before = layer_of(node)
        except UnsupportedError as error:
            report.warn(self.name, node_name(node), f"not cast: {error}")
            return False
        form = WeightFormat(_NAMES[self.dtype])
        targets = {
            name: [form if old.name in _WIDE else old for old in weight.formats]
            for name, weight in before.weights.items()
        }
        stored = any([store(node, name, formats) for name, formats in targets.items()])
        narrow = self.dtype == "bf16" and all(
            form.name == "bfloat16" for formats in targets.values() for form in formats
        )
        if not stored and (not narrow or before.spec.arithmetic == "bfloat16"):
            report.note(self.name, node_name(node), f"nothing to cast: its weights are {before.describe_formats()}")
            return node.op_type == "Linear"
        if narrow:
            set_arithmetic(node, ProductSpec(arithmetic="bfloat16"))
        report.losses.append(loss(self.name, before, layer_of(node)))
        return True
