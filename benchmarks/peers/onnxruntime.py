"""onnxruntime: its operators ``com.microsoft.MoE`` (fp32) and ``QMoE`` (8 and 4 bits, float32 scales)."""

from __future__ import annotations

import pathlib

import numpy as np
from formats import Format, pack_pairs, round_integers
from layers import Layer, Weights

from peers import AbsentError, Built, onnx_layer, require_package

_OPERATORS = {
    "fp32": ("moe",),
    "int8": ("qmoe row", "qmoe b128", "qmoe b32"),
    "int4-g32": ("qmoe b32",),
    "int4-g128": ("qmoe b128",),
}
_BLOCKS = {"qmoe row": 0, "qmoe b128": 128, "qmoe b32": 32}


class OnnxRuntime:
    def variants(self, layer: Layer, form: Format) -> list[str]:
        require_package("onnxruntime")
        if form.name not in _OPERATORS:
            raise AbsentError(f"it has no MoE operator in {form.name} on a CPU")
        if form.name == "int8":  # whole rows are always slower; smaller blocks are of use where larger do not fit
            return ["qmoe b128"] if _fits(layer, 128) else ["qmoe b32"]
        variants = [name for name in _OPERATORS[form.name] if _fits(layer, _BLOCKS.get(name, 0))]
        if not variants:
            raise AbsentError("the layer's widths are no multiple of the block")
        return variants

    def build(self, variant: str, layer: Layer, form: Format, weights: Weights, threads: int) -> Built:
        import onnxruntime

        block = _BLOCKS.get(variant)
        path = onnx_layer.moe_model(weights) if block is None else _qmoe_model(weights, form, block)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        bits = form.bits + 32 / block if block else form.bits
        return Built(bits, lambda case: lambda: session.run(None, {"x": case.x, "logits": case.logits})[0])


def _fits(layer: Layer, block: int) -> bool:
    return block == 0 or (layer.width % block == 0 and layer.hidden % block == 0)


def _qmoe_model(weights: Weights, form: Format, block: int) -> pathlib.Path:
    path = weights.folder / f"qmoe{form.bits}b{block}.onnx"
    if path.exists():
        return path
    initializers: dict[str, np.ndarray] = {}
    bits = int(form.bits)
    for name in ("fc1", "fc2"):
        numbers, scales = round_integers(onnx_layer.fused_distinct(weights, name), bits, block, np.float32)
        unsigned = (numbers.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
        initializers[name] = weights.for_all_experts(pack_pairs(unsigned) if bits == 4 else unsigned)
        initializers[f"{name}_scales"] = weights.for_all_experts(scales if block else scales[..., 0])
    attributes = {"expert_weight_bits": bits} | ({"block_size": block} if block else {})
    onnx_layer.save(path, weights.layer, "QMoE", initializers, attributes)
    return path


PEER = OnnxRuntime()
