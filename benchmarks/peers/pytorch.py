"""PyTorch: transformers' loop over the experts (eager), and its grouped products (``grouped_mm``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from formats import Format
from layers import Case, Layer, Weights

from peers import AbsentError, Built, require_package

if TYPE_CHECKING:
    import torch


class PyTorch:
    def variants(self, layer: Layer, form: Format) -> list[str]:
        require_package("torch")
        if form.name not in ("fp32", "bf16"):
            raise AbsentError(f"it has no experts in {form.name} on a CPU")
        return ["eager", "grouped_mm"]

    def build(self, variant: str, layer: Layer, form: Format, weights: Weights, threads: int) -> Built:
        import torch

        if variant == "grouped_mm" and not hasattr(torch.nn.functional, "grouped_mm"):
            raise AbsentError(f"PyTorch {torch.__version__} has no grouped_mm")
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[form.name]
        up, down = (stack(weights, name, dtype) for name in ("up", "down"))
        if layer.gated:
            up = torch.cat([stack(weights, "gate", dtype), up], dim=1)
        run = _eager if variant == "eager" else _grouped

        def prepare(case: Case) -> Callable[[], Any]:
            x, logits = torch.from_numpy(case.x).to(dtype), torch.from_numpy(case.logits)
            return lambda: run(layer, x, *route(logits, layer.chosen), up, down)

        return Built(form.bits, prepare, lambda y: y.float().numpy())


def stack(weights: Weights, name: str, dtype: torch.dtype) -> torch.Tensor:
    """Stack one projection of all experts."""
    import torch

    return weights.for_all_experts(torch.from_numpy(weights.projection(name).copy()).to(dtype))  # type: ignore[arg-type]


def route(logits: torch.Tensor, chosen: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Route tokens: weights and ids [T, k]."""
    import torch

    scores, ids = torch.topk(torch.softmax(logits, -1), chosen)
    return scores / scores.sum(-1, keepdim=True), ids


def _activation(layer: Layer, hidden: torch.Tensor) -> torch.Tensor:
    import torch

    if not layer.gated:
        return torch.relu(hidden)
    gate, up = hidden.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def _eager(
    layer: Layer, x: torch.Tensor, scores: torch.Tensor, ids: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    import torch

    linear = torch.nn.functional.linear
    y = torch.zeros_like(x)
    for expert in ids.unique().tolist():
        rows, slots = torch.where(ids == expert)
        out = linear(_activation(layer, linear(x[rows], up[expert])), down[expert])
        y.index_add_(0, rows, (out * scores[rows, slots, None]).to(y.dtype))
    return y


def _grouped(
    layer: Layer, x: torch.Tensor, scores: torch.Tensor, ids: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    import torch

    grouped_mm = torch.nn.functional.grouped_mm
    order = torch.argsort(ids.flatten())
    ends = torch.bincount(ids.flatten(), minlength=layer.experts).cumsum(0).to(torch.int32)
    rows = x[order // layer.chosen]
    hidden = _activation(layer, grouped_mm(rows, up.transpose(1, 2), offs=ends))
    out = grouped_mm(hidden, down.transpose(1, 2), offs=ends) * scores.flatten()[order, None].to(x.dtype)
    pairs = torch.empty_like(out)
    pairs[order] = out
    return pairs.view(len(x), layer.chosen, -1).sum(1)


PEER = PyTorch()
