"""Experts' weights in 8 bits or fewer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence, Set
from typing import ClassVar, Literal

import onnx_ir as ir

from moec.common.errors import MoecError
from moec.common.names import node_name
from moec.common.progress import reported
from moec.ir.dialect import is_moec
from moec.ir.weight_operands import size_of_weights, weight_inputs
from moec.ir.weights.format import ELEMENTS, QuantizedName, WeightFormat
from moec.passes.framework.base import Exactness, Report
from moec.passes.weights.calibration import Method, opened
from moec.passes.weights.change_formats import change_formats, readable_layer
from moec.passes.weights.choice import ScaleOptions, input_sizes, resolve_format
from moec.profiles import Profile

Choice = Literal[QuantizedName, "keep"]


@dataclasses.dataclass(frozen=True)
class QuantizeExperts:
    """Stores the weights of experts in ``format`` and quantises activations to match.

    1. Applies to ``moec.Experts``, ``moec.MoE`` and ``moec.GroupedMatMul`` whose weights are constants in any float
       format. Weights that are quantised already stay as they are, so that the pass can be applied several times.
    2. ``up``, ``down`` and ``gate`` give one projection another format than ``format``; ``keep`` leaves it alone.
       ``experts`` restricts the pass to some ids: ``0-3+8`` are 0, 1, 2, 3 and 8. Runs of consecutive experts with
       different formats are joined by Concat.
    3. ``group``: consecutive inputs that share a scale, 0 for all. Without it, int8 has one scale per output channel,
       fp8 too, mxfp4 groups of 32, nvfp4 of 16, and int4 those that other weights of the node have, or else the largest
       of 128, 64 and 32 that divides the inputs of every projection (32 where none does: then the last group is
       shorter). int3 and int2 have groups of 64 or 32 likewise, fp4 of 32 or 16. ``zero_points`` stores integers
       unsigned, ``minima`` too, with the smallest number of each group of ``group`` inputs. In each ``super_group`` of
       inputs, scales and minima are whole numbers times a factor, as in GGUF's K formats (of int6, int5, int3 and int2
       groups may be 16 then): ``format=int4,group=32,super_group=256,minima=true`` is Q4_K.
    4. Products are computed in int8 once every weight of the node is quantised to anything but fp8, by this pass or
       before it; until then their arithmetic stays.
       ``activation_group`` consecutive activations of a token share a scale, 0 for all. Without it, groups are those of
       the weights (16 at least, where these divide all inputs). Beside weights without groups they are 128, or 192, 96,
       64 or 32 where 128 does not divide all inputs; all activations of a token share one where none of these does, or
       where some weights have no groups and others groups of several sizes.
    5. ``method``: ``rtn`` rounds to nearest, with scales that the largest elements need. The others read from
       ``profile``, a file that ``moec profile`` makes, what inputs every expert sees: ``awq`` rounds to nearest with
       scales that are searched for, where errors count as their inputs' mean squares
       (:mod:`moec.passes.weights.scale_search`); ``gptq`` rounds, with such scales, so that weights make up for each
       other's errors (:mod:`moec.passes.weights.gptq`). For an expert that saw fewer rows than a quarter of a weight's
       inputs, all inputs of that weight count the same.
    6. A weight with an infinity or a NaN is an error: only floats can hold it.
    7. The error of weights and outputs goes into the report, layer by layer: on rows of the profile, if there is one,
       else on generated ones.

    ::

        (float[T,64] x, float[T,4] logits) => (float[T,64] y) <float[4,128,64] up, float[4,64,64] down> {
           y = moec.MoE <k = 2> (x, logits, , up, down)
        }
            quantize-experts{format=int4} ->
        (float[T,64] x, float[T,4] logits) => (float[T,64] y)
           <int4[4,128,64] up_int4, float[4,128,1] up_int4_scale,
            int4[4,64,64] down_int4, float[4,64,1] down_int4_scale> {
           up_decoded = DequantizeLinear <axis = 2, block_size = 64, output_dtype = 1> (up_int4, up_int4_scale)
           down_decoded = DequantizeLinear <axis = 2, block_size = 64, output_dtype = 1> (down_int4, down_int4_scale)
           y = moec.MoE <activation_group = 64, arithmetic = "int8", k = 2> (x, logits, , up_decoded, down_decoded)
        }

    ::

        (float[T,64] x, float[T,4] logits) => (float[T,64] y) <float[4,128,64] up, float[4,64,64] down> {
           y = moec.MoE <k = 2> (x, logits, , up, down)
        }
            quantize-experts{format=int4,method=gptq} ->
        MoecError: quantize-experts: method=gptq needs to know the inputs of the weights; expected profile=FILE
    """

    name: ClassVar[str] = "quantize-experts"
    exactness: ClassVar[Exactness] = "lossy"

    format: QuantizedName
    group: int | None = None
    zero_points: bool = False
    minima: bool = False
    super_group: int = 0
    activation_group: int | None = None
    up: Choice | None = None
    down: Choice | None = None
    gate: Choice | None = None
    experts: str | None = None
    method: Method = "rtn"
    profile: str | None = None

    @property
    def _scales(self) -> ScaleOptions:
        return ScaleOptions(self.group, self.zero_points, self.minima, self.super_group)

    def apply(self, model: ir.Model, report: Report) -> bool:
        self._scales.check(self.name, {self.format, self.up, self.down, self.gate}, self.method)
        nodes = [node for node in model.graph if is_moec(node) and node.op_type != "Linear" and weight_inputs(node)]
        if not nodes:
            report.warn(self.name, "model", "nothing to quantise: no MoE block was raised before this pass")
        with opened(self.name, self.method, self.profile) as profile:
            layers = reported(nodes, size_of_weights, report.progress, self.name, "layer")
            return any([self._quantize(node, profile, report) for node in layers])

    def _quantize(self, node: ir.Node, profile: Profile | None, report: Report) -> bool:
        before = readable_layer(self.name, node, report)
        if before is None:
            return False
        sizes = input_sizes(before)
        others = {form.group for weight in before.weights.values() for form in weight.formats} - {0}
        for choice in map(self._choice, before.weights):
            only = () if choice == "keep" else ELEMENTS[choice].groups
            others |= set(only) if len(only) == 1 else set()
        targets = {
            name: self._wanted(node, name, weight.formats, sizes, others) for name, weight in before.weights.items()
        }
        return change_formats(self.name, before, targets, profile, self.method, report, self.activation_group)

    def _choice(self, name: str) -> Choice:
        return getattr(self, name, None) or self.format

    def _wanted(
        self, node: ir.Node, name: str, formats: list[WeightFormat], sizes: Sequence[int], others: Set[int]
    ) -> list[WeightFormat]:
        """The format of every expert after the pass."""
        choice = self._choice(name)
        if choice == "keep":
            return formats
        form = resolve_format(choice, self._scales, sizes, others)
        ids = _expert_ids(self.experts, len(formats), f"{self.name}: node {node_name(node)}")
        return [form if expert in ids and not old.quantized else old for expert, old in enumerate(formats)]


def _expert_ids(text: str | None, count: int, where: str) -> set[int]:
    """The ids in a text such as ``0-3+8``; all for None. Raises MoecError for any other text, and for unknown ids."""
    if text is None:
        return set(range(count))
    ids: set[int] = set()
    for part in text.split("+"):
        first, _, last = part.partition("-")
        if not first.strip().isdigit() or (last and not last.strip().isdigit()):
            raise MoecError(f"{where}: experts={text!r} cannot be read; expected ids and ranges, e.g. 0-3+8")
        ids.update(range(int(first), int(last or first) + 1))
    if ids and max(ids) >= count:
        raise MoecError(f"{where}: experts={text!r} names expert {max(ids)}; there are {count}, from 0")
    return ids
