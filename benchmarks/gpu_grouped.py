"""A layer of experts by PyTorch's grouped products: pairs are sorted by expert, without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from gpu_layers import GpuWeights, route


def grouped_product() -> Callable[..., torch.Tensor] | None:
    """Find the product of this version of PyTorch."""
    return getattr(torch.nn.functional, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)


def grouped_moe(
    weights: GpuWeights, product: Callable[..., torch.Tensor], x: torch.Tensor, logits: torch.Tensor
) -> torch.Tensor:
    """Compute the layer's results [T, d]. ``product``: of :func:`grouped_product`."""
    layer = weights.layer
    up, down = weights.up.transpose(1, 2), weights.down.transpose(1, 2)
    experts = torch.arange(layer.experts, device=weights.up.device)
    scores, ids = route(logits, layer.chosen)
    by_expert, order = torch.sort(ids.flatten(), stable=True)
    ends = torch.searchsorted(by_expert, experts, right=True).to(torch.int32)
    gate, hidden = product(x[order // layer.chosen], up, offs=ends).chunk(2, dim=-1)
    results = product(torch.nn.functional.silu(gate) * hidden, down, offs=ends)
    results = results * scores.flatten()[order, None].to(x.dtype)
    pairs = torch.empty_like(results).index_copy_(0, order, results)
    return pairs.view(len(x), layer.chosen, -1).sum(1)
