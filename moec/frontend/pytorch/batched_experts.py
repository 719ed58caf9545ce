"""Experts of transformers without data-dependent loops: every token gets a copy of its experts' weights.

Some modules loop over the experts that tokens select. The number of tokens of an expert depends on data, and
torch.export has no loop for that. These forwards do for them what ``batched_mm`` of transformers does for the modules
with its experts interface (``transformers/integrations/moe.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def dbrx(self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> Any:
    """The forward of ``DbrxExperts``: x [B,T,d], ids and weights [BT,k]; returns [B,T,d]."""
    rows, ids = hidden_states.reshape(-1, self.hidden_size), top_k_index.reshape(-1)
    w1, v1, w2 = (
        weight.view(self.num_experts, self.ffn_hidden_size, self.hidden_size)
        for weight in (self.mlp.w1, self.mlp.v1, self.mlp.w2)
    )
    rows = rows.repeat_interleave(top_k_index.shape[-1], dim=0)
    hidden = self.mlp.activation_fn(_times(w1[ids], rows)) * _times(v1[ids], rows)
    results = (hidden.unsqueeze(1) @ w2[ids]).squeeze(1)
    return _summed(results, top_k_weights).view(hidden_states.shape)


def longcat(self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> Any:
    """The forward of ``LongcatFlashExperts``, the last of which return their input: x [T,d], ids and weights [T,k]."""
    import torch

    stored = top_k_index < self.num_routed_experts
    ids = torch.where(stored, top_k_index, 0).reshape(-1)
    rows = hidden_states.repeat_interleave(top_k_index.shape[-1], dim=0)
    gate, up = _times(self.gate_up_proj[ids], rows).chunk(2, dim=-1)
    results = _times(self.down_proj[ids], self.act_fn(gate) * up)
    passed = torch.where(stored, 0.0, top_k_weights).sum(-1, keepdim=True)
    return _summed(results, torch.where(stored, top_k_weights, 0.0)) + hidden_states * passed


def step(self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> Any:
    """The forward of ``Step3p7Experts``: x [T,d], ids and weights [T,k]."""
    ids, rows = top_k_index.reshape(-1), hidden_states.repeat_interleave(top_k_index.shape[-1], dim=0)
    hidden = self._apply_gate(_times(self.gate_up_proj[ids], rows))
    return _summed(_times(self.down_proj[ids], hidden), top_k_weights)


def jetmoe(self: Any, layer_input: torch.Tensor) -> torch.Tensor:
    """The forward of ``JetMoeMoE``: x [B,T,d]."""
    rows = layer_input.reshape(-1, layer_input.shape[-1])
    ids, weights = _chosen(self.router, rows)
    repeated = rows.repeat_interleave(ids.shape[-1], dim=0)
    gate, up = _times(self.input_linear.weight[ids.reshape(-1)], repeated).chunk(2, dim=-1)
    results = _times(self.output_linear.weight[ids.reshape(-1)], self.activation(gate) * up)
    return _summed(results, weights).view(layer_input.shape) + self.bias


def jetmoe_queries(self: Any, layer_input: torch.Tensor) -> tuple[torch.Tensor, None, Any]:
    """``map`` of ``JetMoeMoA``: x [B,T,d] to queries [B,T,k,n]. Also returns the routing that :func:`jetmoe_outputs`
    takes."""
    rows = layer_input.reshape(-1, layer_input.shape[-1])
    ids, weights = _chosen(self.router, rows)
    queries = _times(self.input_linear.weight[ids.reshape(-1)], rows.repeat_interleave(ids.shape[-1], dim=0))
    return queries.view(*layer_input.shape[:2], self.top_k, -1), None, (ids, weights)


def jetmoe_outputs(self: Any, layer_input: torch.Tensor, chosen: Any) -> torch.Tensor:
    """``reduce`` of ``JetMoeMoA``: attention's results [B,T,k,n] to x [B,T,d]."""
    ids, weights = chosen
    results = _times(self.output_linear.weight[ids.reshape(-1)], layer_input.reshape(-1, layer_input.shape[-1]))
    return _summed(results, weights).view(*layer_input.shape[:2], -1) + self.bias


def _chosen(router: Any, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Select with JetMoe's router. Returns ids and weights [T,k]."""
    import torch

    logits, ids = router.layer(rows).float().topk(router.top_k, dim=1)
    return ids, torch.softmax(logits, dim=1).type_as(rows)


def _times(matrices: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Multiply matrices [n,out,in] by rows [n,in]."""
    return (matrices @ rows.unsqueeze(-1)).squeeze(-1)


def _summed(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum rows [Tk,d] weighted by weights [T,k] to [T,d]."""
    weighted = rows * weights.reshape(-1, 1)
    return weighted.view(*weights.shape, rows.shape[-1]).sum(1)
