"""Contestants of ``gpu_moe.py``: functions that turn a layer's weights into the call that is timed.

A call takes tokens [T, d] and router logits [T, E] in bfloat16 on the device and returns [T, d]; routing is part of it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import torch
from gpu_grouped import grouped_moe, grouped_product
from gpu_layers import GpuWeights, route
from peers import AbsentError, require_package

Call = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A call to time. ``bits``: memory per weight, scales included."""

    call: Call
    bits: float = 16.0


def moec_with(passes: str) -> Callable[[GpuWeights, str], Contestant]:
    """Make a builder of moec, whose passes follow the default pipeline. It is compiled for ``target``."""

    def build(weights: GpuWeights, target: str) -> Contestant:
        import moec

        model = moec.compile(layer_model(weights), target=target, passes=passes)
        stored = sum(weight["bytes"] for weight in model.describe()["weights"])
        bits = 8 * stored / (weights.up.numel() + weights.down.numel())
        return Contestant(lambda x, logits: model.run({"x": x, "logits": logits})["y"], bits)

    return build


def layer_model(weights: GpuWeights) -> Any:
    """Build the layer as ONNX IR of one ``moec.MoE``."""
    import onnx_ir as ir

    from moec.ir.dialect import ExpertsSpec, RouteSpec, make_node

    layer = weights.layer
    dtype = ir.TensorType(ir.DataType.BFLOAT16)
    sizes = {"x": layer.width, "logits": layer.experts}
    values = {name: ir.Value(name=name, shape=ir.Shape(["T", size]), type=dtype) for name, size in sizes.items()}
    constants = {}
    for name, tensor in (("up", weights.up), ("down", weights.down)):
        array = tensor.contiguous().view(torch.int16).cpu().numpy().view(ml_dtypes.bfloat16)
        shape = ir.Shape(array.shape)
        constants[name] = ir.Value(name=name, shape=shape, type=dtype, const_value=ir.tensor(array, name=name))
    spec = RouteSpec(k=layer.chosen, normalize=True)
    node = make_node("MoE", {**values, **constants}, spec, ExpertsSpec(), name="layer")
    node.outputs[0].name = "y"
    graph = ir.Graph(
        list(values.values()),
        node.outputs,
        nodes=[node],
        initializers=list(constants.values()),
        opset_imports={"": 24, "moec": 1},
        name="layer",
    )
    return ir.Model(graph, ir_version=10)


def grouped_mm(weights: GpuWeights, _target: str) -> Contestant:
    """Build the layer of ``gpu_grouped.py``."""
    product = grouped_product()
    if product is None:
        raise AbsentError(f"PyTorch {torch.__version__} has no grouped_mm")
    return Contestant(functools.partial(grouped_moe, weights, product))


def transformers_eager(weights: GpuWeights, _target: str) -> Contestant:
    """Build the experts of ``Qwen3MoeSparseMoeBlock``, which run one after the other."""
    require_package("transformers")
    from transformers.models.qwen3_moe import configuration_qwen3_moe, modeling_qwen3_moe

    layer = weights.layer
    config = configuration_qwen3_moe.Qwen3MoeConfig(
        hidden_size=layer.width, moe_intermediate_size=layer.hidden, num_experts=layer.experts,
        num_experts_per_tok=layer.chosen, norm_topk_prob=True, experts_implementation="eager",
    )  # fmt: skip
    with torch.device("meta"):
        block = modeling_qwen3_moe.Qwen3MoeSparseMoeBlock(config)
    experts: Any = block.experts
    if not hasattr(experts, "gate_up_proj"):
        raise AbsentError("this version of transformers keeps experts apart; expected 5.0 or newer")
    experts.gate_up_proj = torch.nn.Parameter(weights.up, requires_grad=False)
    experts.down_proj = torch.nn.Parameter(weights.down, requires_grad=False)

    def call(x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        scores, ids = route(logits, layer.chosen)
        return experts(x, ids, scores.to(x.dtype))

    return Contestant(call)


def triton_fused(weights: GpuWeights, _target: str) -> Contestant:
    """Build the kernels of ``gpu_triton.py``."""
    require_package("triton")
    from gpu_triton import fused_moe

    return Contestant(lambda x, logits: fused_moe(weights, x, logits))


def vllm_fused(weights: GpuWeights, _target: str) -> Contestant:
    """Build vLLM's fused experts, tuned where it has a configuration for the GPU."""
    require_package("vllm")
    try:
        from vllm.model_executor.layers.fused_moe import fused_experts
    except ImportError as error:
        raise AbsentError(f"its fused experts cannot be imported: {error}") from error

    def call(x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        scores, ids = route(logits, weights.layer.chosen)
        return fused_experts(x, weights.up, weights.down, scores, ids.to(torch.int32))

    return Contestant(call)


CONTESTANTS: dict[str, Callable[[GpuWeights, str], Contestant]] = {
    "moec": moec_with("O2"),
    "moec int4": moec_with("O2,quantize-experts{format=int4,group=32}"),
    "moec mxfp4": moec_with("O2,quantize-experts{format=mxfp4}"),
    "grouped_mm": grouped_mm,
    "transformers": transformers_eager,
    "triton": triton_fused,
    "vllm": vllm_fused,
}
"""Contestants by name. The peers take bfloat16 weights; moec's formats of 4 bits are shown next to them."""


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference as a share of the norm."""
    difference = (actual.float() - expected).cpu().numpy().astype(np.float64)
    return float(np.linalg.norm(difference) / np.linalg.norm(expected.cpu().numpy().astype(np.float64)))
