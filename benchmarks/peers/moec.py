"""moec itself, compiled from the float32 model."""

from __future__ import annotations

from formats import Format
from layers import PASSES, Layer, Weights

from peers import Built, onnx_layer

_QUANTIZERS = {
    "fp32": (),
    "bf16": ("cast-weights{dtype=bf16}",),
    "int8": ("quantize-experts{format=int8}",),
    "int4-g32": ("quantize-experts{format=int4,group=32}",),
    "int4-g128": ("quantize-experts{format=int4,group=128}",),
    "mxfp4": ("quantize-experts{format=mxfp4}",),
}
"""Passes after the default pipeline."""
_PER_TOKEN = "per token"
"""Variant that quantises activations as coarsely as vLLM does: one scale per token instead of per 128 inputs."""


class Moec:
    def variants(self, layer: Layer, form: Format) -> list[str]:
        return ["", _PER_TOKEN] if form.name == "int8" else [""]

    def build(self, variant: str, layer: Layer, form: Format, weights: Weights, threads: int) -> Built:
        import moec

        passes = ",".join((PASSES, *_QUANTIZERS[form.name]))
        if variant == _PER_TOKEN:
            passes = passes.replace("int8}", "int8,activation_group=0}")
        model = moec.compile(str(onnx_layer.moe_model(weights)), passes=passes, threads=threads)
        stored = sum(weight["bytes"] for weight in model.describe()["weights"])
        bits = 8 * stored / (layer.experts * layer.weights_per_expert)
        return Built(bits, lambda case: lambda: model.run({"x": case.x, "logits": case.logits})["y"])


PEER = Moec()
