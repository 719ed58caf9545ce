"""MoE language models with random weights as ONNX files: in fp32, and with experts and dense products in 4 bits.

transformers builds them in the shape of published ones with fewer layers, and PyTorch exports them with a cache of keys
and values. Experts are exported as onnxruntime's own operators, ``com.microsoft.MoE`` and ``QMoE``, and 4-bit products
as its ``MatMulNBits``. That is the fastest form of the model for onnxruntime, which makes the comparison on the same
graph fair.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import torch
from formats import pack_pairs, round_integers

BLOCK = 32
"""Weights of a row that share a scale in 4 bits."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a model. ``layers``: as many as fit into memory three times. ``normalized``: whether routing weights of
    a token sum to 1."""

    name: str
    architecture: str
    width: int
    hidden: int
    experts: int
    chosen: int
    heads: int
    key_heads: int
    vocabulary: int
    layers: int
    normalized: bool

    def build(self, layers: int | None = None) -> torch.nn.Module:
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        experts = "num_local_experts" if self.architecture == "granitemoe" else "num_experts"
        config = AutoConfig.for_model(
            self.architecture, hidden_size=self.width, intermediate_size=self.hidden, vocab_size=self.vocabulary,
            num_hidden_layers=layers or self.layers, num_attention_heads=self.heads, num_key_value_heads=self.key_heads,
            num_experts_per_tok=self.chosen, max_position_embeddings=4096, **{experts: self.experts},
        )  # fmt: skip
        return AutoModelForCausalLM.from_config(config).eval()


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("granite-3.1-1b-a400m", "granitemoe", 1024, 512, 32, 8, 16, 8, 49155, 4, True),
        Shape("olmoe-1b-7b", "olmoe", 2048, 1024, 64, 8, 16, 16, 50304, 2, False),
    )
}


class WithCache(torch.nn.Module):
    """Model with a cache: ``(ids [1, S], keys and values of every layer [1, heads, P, size]) -> (logits of the last
    token, keys and values with the new ones [1, heads, P + S, size])``."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, past: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        logits = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return (logits, *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values)))


def empty_cache(model: torch.nn.Module, length: int = 0) -> list[torch.Tensor]:
    config: Any = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = (1, config.num_key_value_heads, length, size)
    return [torch.zeros(shape) for _ in range(2 * config.num_hidden_layers)]


class MoeOperator(torch.nn.Module):
    """Replacement of an MoE block that is exported as one operator and cannot be run."""

    def __init__(self, router: torch.Tensor, experts: Any, shape: Shape, four_bits: bool) -> None:
        super().__init__()
        self._shape, self._four_bits = shape, four_bits
        self.register_buffer("router", router)
        gate, up = experts.gate_up_proj.detach().chunk(2, dim=1)
        fc1 = torch.stack([gate, up], dim=2).flatten(1, 2)  # interleaved row by row, as the operator expects them
        for name, weight in (("fc1", fc1), ("fc2", experts.down_proj.detach())):
            scales = None
            if four_bits:
                weight, scales = _in_four_bits(weight)
            self.register_buffer(name, weight)
            self.register_buffer(f"{name}_scales", scales)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        shape = self._shape
        rows = hidden.reshape(-1, shape.width)
        logits = torch.nn.functional.linear(rows, self.router)
        attributes = {
            "k": shape.chosen, "normalize_routing_weights": int(shape.normalized), "activation_type": "swiglu",
            "swiglu_fusion": 1, "activation_alpha": 1.0, "activation_beta": 0.0,
        }  # fmt: skip
        weights = [self.fc1, None, self.fc2]
        if self._four_bits:
            weights = [self.fc1, self.fc1_scales, None, self.fc2, self.fc2_scales]
            attributes |= {"expert_weight_bits": 4, "block_size": BLOCK}
        operator = "com.microsoft::QMoE" if self._four_bits else "com.microsoft::MoE"
        y = torch.onnx.ops.symbolic(
            operator, (rows, logits, *weights), attributes, dtype=torch.float32, shape=rows.shape, version=1
        )
        return y.reshape(hidden.shape)


def _in_four_bits(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    packed, scales = [], []
    for expert in weight.numpy():
        numbers, scale = round_integers(expert, 4, BLOCK, np.float32)
        packed.append(pack_pairs((numbers + 8).astype(np.uint8)))
        scales.append(scale)
    return torch.from_numpy(np.stack(packed)), torch.from_numpy(np.stack(scales))


def export(model: torch.nn.Module, shape: Shape, path: pathlib.Path, *, four_bits: bool) -> None:
    """Write the ONNX file. The model's MoE blocks are restored afterwards."""
    name, router = ("block_sparse_moe", "router") if shape.architecture == "granitemoe" else ("mlp", "gate")
    decoders: Any = model.model.layers  # type: ignore[union-attr]
    blocks = [getattr(decoder, name) for decoder in decoders]
    for decoder, block in zip(decoders, blocks, strict=True):
        operator = MoeOperator(getattr(block, router).weight.detach(), block.experts, shape, four_bits)
        setattr(decoder, name, operator)
    try:
        _export(model, path)
    finally:
        for decoder, block in zip(decoders, blocks, strict=True):
            setattr(decoder, name, block)
    if four_bits:
        _round_products(path)


def _export(model: torch.nn.Module, path: pathlib.Path) -> None:
    length, filled = torch.export.Dim.DYNAMIC, torch.export.Dim("past")
    past = empty_cache(model, 3)
    names = [f"{kind}.{layer}" for layer in range(len(past) // 2) for kind in ("keys", "values")]
    torch.onnx.export(
        WithCache(model).eval(), (torch.zeros(1, 5, dtype=torch.int64), past), path, dynamo=True, external_data=True,
        dynamic_shapes=({1: length}, [{2: filled}] * len(past)), verbose=False,
        input_names=["ids", *(f"past.{name}" for name in names)],
        output_names=["logits", *(f"present.{name}" for name in names)],
    )  # fmt: skip


def _round_products(path: pathlib.Path) -> None:
    """Convert dense products to 4 bits with onnxruntime's own tool."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(path), block_size=BLOCK, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    for file in path.parent.iterdir():
        file.unlink()
    onnx.save(quantizer.model.model, path, save_as_external_data=True, location=f"{path.stem}.bin")
