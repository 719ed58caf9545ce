"""The layers of ``gpu_moe.py`` in PyTorch: weights, inputs, routing, and reference results.

Every function takes a device, so that it can be checked on a processor.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from layers import Layer

SCALE_OF_LOGITS = 2.0
"""Standard deviation of the logits, large enough for unequal numbers of tokens per expert, as in models."""


@dataclasses.dataclass(frozen=True)
class GpuWeights:
    """Weights of a layer: ``up`` [E, 2 f, d] with all rows of the gate first, ``down`` [E, d, f], in bfloat16."""

    layer: Layer
    up: torch.Tensor
    down: torch.Tensor


def make_weights(layer: Layer, device: str) -> GpuWeights:
    """Draw normal numbers, scaled so that products keep the size of their inputs."""
    generator = torch.Generator(device).manual_seed(0)

    def stack(rows: int, columns: int) -> torch.Tensor:
        shape = (layer.experts, rows, columns)
        numbers = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
        return numbers / columns**0.5

    return GpuWeights(layer, stack(2 * layer.hidden, layer.width), stack(layer.width, layer.hidden))


def make_inputs(layer: Layer, tokens: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw tokens [T, d] and router logits [T, E] in bfloat16."""
    generator = torch.Generator(device).manual_seed(tokens)
    shapes = ((tokens, layer.width), (tokens, layer.experts))
    x, logits = (torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16) for shape in shapes)
    return x, logits * SCALE_OF_LOGITS


def route(logits: torch.Tensor, chosen: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Route tokens: weights [T, k] in float32, which sum to 1, and ids [T, k] in int64. Softmax over all comes first,
    then the selection of the k largest."""
    scores, ids = torch.topk(torch.softmax(logits.float(), -1), chosen)
    return scores / scores.sum(-1, keepdim=True), ids


def active_experts(layer: Layer, logits: torch.Tensor) -> int:
    """Count the experts that have a token."""
    return len(route(logits, layer.chosen)[1].unique())


def reference(weights: GpuWeights, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Compute the results [T, d] in float32, pair by pair: for few tokens."""
    scores, ids = route(logits, weights.layer.chosen)
    y = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for token, slot in torch.cartesian_prod(*(torch.arange(size) for size in ids.shape)).tolist():
        expert = int(ids[token, slot])
        gate, up = (weights.up[expert].float() @ x[token].float()).chunk(2)
        hidden = torch.nn.functional.silu(gate) * up
        y[token] += scores[token, slot] * (weights.down[expert].float() @ hidden)
    return y
