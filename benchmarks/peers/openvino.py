"""OpenVINO's plugin for CPUs. The block has the form that its converter of PyTorch models writes, all experts on all
tokens and a mask: the plugin recognises that form and computes only the selected experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from formats import Format, pack_pairs, round_integers
from layers import Case, Layer, Weights

from peers import AbsentError, Built, require_package

if TYPE_CHECKING:
    import openvino

_FORMATS = ("fp32", "bf16", "int8", "int4-g32", "int4-g128")


class OpenVino:
    def variants(self, layer: Layer, form: Format) -> list[str]:
        require_package("openvino")
        if form.name not in _FORMATS:
            raise AbsentError(f"it has no experts in {form.name} on a CPU")
        if not layer.gated:
            raise AbsentError("it recognises gated experts only")
        if form.group and (layer.width % form.group or layer.hidden % form.group):
            raise AbsentError("the layer's widths are no multiple of the group")
        return [""]

    def build(self, variant: str, layer: Layer, form: Format, weights: Weights, threads: int) -> Built:
        import openvino

        options = {
            "INFERENCE_PRECISION_HINT": "f32" if form.name == "fp32" else "bf16",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        compiled = openvino.Core().compile_model(_model(layer, form, weights), "CPU", options)
        names = {node.get_rt_info()["layerType"] for node in compiled.get_runtime_model().get_ops()}
        if not any("GatherMatmul" in str(name) for name in names):
            raise AbsentError("it does not recognise the block and would compute all experts")

        def prepare(case: Case) -> Callable[[], Any]:
            request = compiled.create_infer_request()
            request.set_input_tensor(0, openvino.Tensor(np.ascontiguousarray(case.x[None])))
            request.set_input_tensor(1, openvino.Tensor(case.logits))

            def call() -> Any:
                request.infer()
                return request.get_output_tensor(0).data

            return call

        bits = form.bits + 16 / form.group if form.group else form.bits
        return Built(bits, prepare, lambda y: y.reshape(-1, layer.width))


def _model(layer: Layer, form: Format, weights: Weights) -> openvino.Model:
    import openvino
    from openvino import opset13 as op

    float32 = openvino.Type.f32
    E, d = layer.experts, layer.width
    x = op.parameter([-1, -1, d], float32)  # a dynamic batch: with 1 the reshapes would be simplified away
    logits = op.parameter([-1, E], float32)
    batch = op.gather(op.shape_of(x), [0], 0)

    def shape(*sizes: Any) -> Any:
        return op.concat([np.array([size], np.int64) if isinstance(size, int) else size for size in sizes], 0)

    best = op.topk(op.softmax(logits, 1), layer.chosen, 1, "max", "value")
    scores = op.divide(best.output(0), op.reduce_sum(best.output(0), 1, keep_dims=True))
    mask = op.broadcast(np.float32(0), op.shape_of(logits))
    mask = op.transpose(op.scatter_elements_update(mask, best.output(1), scores, 1), [1, 0])
    mask = op.unsqueeze(op.reshape(mask, shape(E, batch, -1), False), -1)
    rows = op.tile(op.reshape(x, [-1, d], False), [E, 1])
    rows = op.reshape(rows, [E, -1, d], False)
    gate, up, down = (_weight(weights, name, form) for name in weights.projections)
    hidden = op.multiply(op.swish(op.matmul(rows, gate, False, True)), op.matmul(rows, up, False, True))
    out = op.reshape(op.matmul(hidden, down, False, True), shape(E, batch, -1, d), False)
    y = op.reduce_sum(op.multiply(out, mask), 0, keep_dims=False)
    return openvino.Model([y], [x, logits], "layer")


def _weight(weights: Weights, name: str, form: Format) -> Any:
    """Make one projection of all experts; stored numbers are decompressed where they are used."""
    import openvino
    from openvino import opset13 as op

    distinct = weights.projection(name)
    if form.name == "fp32":
        return op.constant(weights.for_all_experts(distinct), openvino.Type.f32)
    if form.name == "bf16":
        stored = _constant(weights.for_all_experts(distinct.astype(ml_dtypes.bfloat16)), openvino.Type.bf16)
        return op.convert(stored, "f32")
    numbers, scales = round_integers(distinct, int(form.bits), form.group, np.float16)
    scale = op.convert(op.constant(weights.for_all_experts(scales)[..., None]), "f32")
    if form.name == "int8":
        stored = op.constant(weights.for_all_experts(numbers))
        return op.multiply(op.convert(stored, "f32"), op.convert(op.constant(weights.for_all_experts(scales)), "f32"))
    count, rows, inner = weights.layer.experts, *numbers.shape[1:]
    packed = weights.for_all_experts(pack_pairs((numbers & 15).astype(np.uint8)))
    stored = _constant(packed, openvino.Type.i4, [count, rows, inner // form.group, form.group])
    return op.reshape(op.multiply(op.convert(stored, "f32"), scale), [count, rows, inner], False)


def _constant(data: np.ndarray, kind: Any, shape: list[int] | None = None) -> Any:
    """Make a constant of a type that numpy lacks, in memory of its own."""
    import openvino

    tensor = openvino.Tensor(kind, openvino.Shape(shape or data.shape))
    openvino.Tensor(data.view(np.uint8), openvino.Shape(shape or data.shape), kind).copy_to(tensor)
    return openvino.op.Constant(tensor)


PEER = OpenVino()
