"""Formats for every expert and projection, selected by their effect on the outputs."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from moec.common.errors import MoecError
from moec.ir.weights.format import WeightFormat
from moec.passes.framework.base import Exactness, Report
from moec.passes.framework.shorthand import parse_format
from moec.passes.weights.bits import GIGABYTES_PER_SECOND, WeightBudget
from moec.passes.weights.calibration import Method, opened
from moec.passes.weights.judged_plan import apply_plan, assignable, choose
from moec.placing.plan import LayerPlan, read_plan
from moec.profiles import Profile
from moec.profiles.keys import key_of, numbered


@dataclasses.dataclass(frozen=True)
class AssignBits:
    """Stores every expert's weights in a format of its own: those with the least error that a budget allows.

    1. Applies to ``moec.Experts`` and ``moec.MoE`` and, with ``linears``, to dense products of 65,536 weights or more.
       Weights that are quantised already stay as they are.
    2. ``profile``, a file that ``moec profile`` makes, holds for every expert, projection and format how much the
       output changes when that weight alone has that format, on the tokens that came to the expert, weighted as these
       were. Over the whole model at once, formats are chosen so that the sum of these errors is the least that the
       budget allows (:mod:`moec.passes.weights.allocation`). Gate and up of an expert get one format, for kernels read
       them together. With ``per_layer`` all experts of a layer share the formats, as they do in GGUF files.
    3. Formats differ in bits, in the size of groups and in zero points; all that a format costs counts. A layer's
       weights have one size of groups, or none (int8), because kernels sum up one size
       (:mod:`moec.passes.weights.layer_groups`).
    4. The budget is one of: ``avg`` bits per weight, scales not counted; ``megabytes`` (millions of bytes) for all
       these weights, scales counted; ``microseconds`` that decoding a token is predicted to wait for them: bytes,
       scales counted, times the calls per token that the profile saw (dense products: 1), over the bandwidth of memory,
       ``gigabytes_per_second``. By time, bits of an expert that is rarely called cost little.
    5. ``formats``: those to choose from, ``int4/32+int4/64+int2/32z``; by default all that the profile holds errors of.
    6. An error counts by how far it moves the model's output, which the profile says of gate and up and of down of
       every layer (:mod:`moec.tools.profiling.output_sensitivity`), and by what ``method`` leaves of it
       (:mod:`moec.passes.weights.method_gain`). Where ``sensitivities`` is a file, that says instead what errors of
       each layer count (:mod:`moec.passes.weights.sensitivities`). Without either, errors of all layers count alike.
    7. The plan and the best single format within the budget are tried on the data that the profile holds back; the one
       that moves the model's output less is taken (:mod:`moec.passes.weights.judged_plan`). A remark says which.
    8. ``plan`` is a file as ``moec plan`` writes it, maybe edited, whose formats are taken instead.
    9. ``method`` rounds, as in quantize-experts, and activations are quantised to match.
    10. The error of weights and outputs goes into the report, layer by layer.

    ::

        (float[T,64] x, float[T,4] logits) => (float[T,64] y) <float[4,64,64] up, float[4,64,64] down> {
           y = moec.MoE <activation = "relu", gate_layout = "none", k = 2> (x, logits, , up, down)
        }
            assign-bits{avg=6,profile=PROFILE,formats=int8+int4/32,method=rtn} ->
        (float[T,64] x, float[T,4] logits) => (float[T,64] y)
           <int8[1,64,64] up_int8, float[1,64,1] up_int8_scale, int4[1,64,64] up_int4, float16[1,64,2] up_int4_scale,
            int8[1,64,64] up_int8_2, float[1,64,1] up_int8_scale_2, int4[1,64,64] up_int4_2,
            float16[1,64,2] up_int4_scale_2, int4[1,64,64] down_int4, float16[1,64,2] down_int4_scale,
            int8[2,64,64] down_int8, float[2,64,1] down_int8_scale, int4[1,64,64] down_int4_2,
            float16[1,64,2] down_int4_scale_2> {
           up_decoded = DequantizeLinear <axis = 2, block_size = 64, output_dtype = 1> (up_int8, up_int8_scale)
           up_decoded_2 = DequantizeLinear <axis = 2, block_size = 32, output_dtype = 1> (up_int4, up_int4_scale)
           up_decoded_3 = DequantizeLinear <axis = 2, block_size = 64, output_dtype = 1> (up_int8_2, up_int8_scale_2)
           up_decoded_4 = DequantizeLinear <axis = 2, block_size = 32, output_dtype = 1> (up_int4_2, up_int4_scale_2)
           up_stored = Concat <axis = 0> (up_decoded, up_decoded_2, up_decoded_3, up_decoded_4)
           down_decoded = DequantizeLinear <axis = 2, block_size = 32, output_dtype = 1> (down_int4, down_int4_scale)
           down_decoded_2 = DequantizeLinear <axis = 2, block_size = 64, output_dtype = 1> (down_int8, down_int8_scale)
           down_decoded_3 = DequantizeLinear <axis = 2, block_size = 32, output_dtype = 1>
                                             (down_int4_2, down_int4_scale_2)
           down_stored = Concat <axis = 0> (down_decoded, down_decoded_2, down_decoded_3)
           y = moec.MoE <activation = "relu", activation_group = 32, arithmetic = "int8", gate_layout = "none", k = 2>
                        (x, logits, "", up_stored, down_stored)
        }

    The first two of these experts get every token, the third none: its bits cost no time.

    ::

        (float[T,64] x, float[T,3] logits) => (float[T,64] y) <float[3,64,64] up, float[3,64,64] down> {
           y = moec.MoE <activation = "relu", gate_layout = "none", k = 2> (x, logits, , up, down)
        }
            assign-bits{microseconds=9.3,gigabytes_per_second=1,profile=PROFILE,formats=int8+int4/32,method=rtn} ->
        (float[T,64] x, float[T,3] logits) => (float[T,64] y)
           <int4[2,64,64] up_int4, float16[2,64,2] up_int4_scale, int8[1,64,64] up_int8, float[1,64,1] up_int8_scale,
            int4[2,64,64] down_int4, float16[2,64,2] down_int4_scale, int8[1,64,64] down_int8,
            float[1,64,1] down_int8_scale> {
           up_decoded = DequantizeLinear <axis = 2, block_size = 32, output_dtype = 1> (up_int4, up_int4_scale)
           up_decoded_2 = DequantizeLinear <axis = 2, block_size = 64, output_dtype = 1> (up_int8, up_int8_scale)
           up_stored = Concat <axis = 0> (up_decoded, up_decoded_2)
           down_decoded = DequantizeLinear <axis = 2, block_size = 32, output_dtype = 1> (down_int4, down_int4_scale)
           down_decoded_2 = DequantizeLinear <axis = 2, block_size = 64, output_dtype = 1> (down_int8, down_int8_scale)
           down_stored = Concat <axis = 0> (down_decoded, down_decoded_2)
           y = moec.MoE <activation = "relu", activation_group = 32, arithmetic = "int8", gate_layout = "none", k = 2>
                        (x, logits, "", up_stored, down_stored)
        }
    """

    name: ClassVar[str] = "assign-bits"
    exactness: ClassVar[Exactness] = "lossy"

    avg: float | None = None
    megabytes: float | None = None
    microseconds: float | None = None
    gigabytes_per_second: float = GIGABYTES_PER_SECOND
    profile: str | None = None
    plan: str | None = None
    formats: str | None = None
    sensitivities: str | None = None
    linears: bool = False
    per_layer: bool = False
    method: Method = "gptq"

    def apply(self, model: ir.Model, report: Report) -> bool:
        self._check()
        nodes = assignable(model.graph, self.linears)
        if not nodes:
            report.warn(self.name, "model", "nothing to assign bits to: no MoE block was raised before this pass")
        where = self.plan or self.name
        with opened(self.name, self.method, self.profile) as profile:
            plans = self._plans(model, profile, report)
            changed = [
                apply_plan(self.name, node, plans.pop(key, None), profile, self.method, report, where)
                for node, key in zip(nodes, numbered(map(key_of, nodes)), strict=True)
            ]
        if plans:
            other = next(iter(plans.values()))
            raise MoecError(f"{self.plan}: layer {other.layer} ({other.name}) is not in this model")
        return any(changed) or self.linears

    def _check(self) -> None:
        if sum(limit is not None for limit in (self.avg, self.megabytes, self.microseconds, self.plan)) != 1:
            raise MoecError(f"{self.name}: expected one of avg=BITS, megabytes=SIZE, microseconds=TIME and plan=FILE")
        if self.profile is None and (self.plan is None or self.method != "rtn"):
            raise MoecError(f"{self.name}: expected profile=FILE, which moec profile MODEL --data DATA -o FILE makes")

    def _plans(self, model: ir.Model, profile: Profile | None, report: Report) -> dict[str, LayerPlan]:
        if self.plan is not None:
            return {layer.layer: layer for layer in read_plan(self.plan).layers if layer.formats}
        assert profile is not None
        budget = WeightBudget(self.avg, self.megabytes, self.microseconds, self.gigabytes_per_second)
        forms = choices(self.formats, profile)
        chosen = choose(model, self.linears, profile, forms, budget, self.sensitivities, self.method, self.per_layer)
        for remark in chosen.remarks:
            report.note(self.name, "model", remark)
        return {plan.layer: plan for plan in chosen.plans}


def choices(formats: str | None, profile: Profile) -> list[WeightFormat]:
    """The formats that a text lists; those of the profile for None."""
    listed = profile.head.formats if formats is None else formats.split("+")
    if not listed:
        raise MoecError(f"{profile.path}: holds errors of no format; profile with --formats, e.g. int8,int4/32,int2/32")
    return [parse_format("formats", item) for item in listed]
