"""Attention to blocks of keys that an indexer selects, without branches on the number of blocks.

Modules of transformers pad the last block where it is short, and skip some steps where there are no blocks;
torch.export would fix one of these cases. Here there always is a last block that is not full, and no query sees it.

Functions have the signatures of the functions of transformers that they replace. None takes a cache.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from moec.common.errors import UnsupportedError
from moec.frontend.pytorch.dynamic_sizes import smallest

if TYPE_CHECKING:
    import torch


def minimax_indexer(
    self: Any, hidden_states: torch.Tensor, position_embeddings: Any, cache: Any, position_ids: torch.Tensor
) -> torch.Tensor:
    """The forward of ``MiniMaxM3VLIndexer``, with a result that :func:`minimax_mask` takes: whether a query of x
    [B,T,d] attends to a block of keys, [B,H,T,n]."""
    import torch

    _check_stateless(cache)
    batch, length, _ = hidden_states.shape
    query = self.q_norm(self.q_proj(hidden_states).view(batch, length, -1, self.head_dim)).transpose(1, 2)
    key = self.k_norm(self.k_proj(hidden_states).view(batch, length, 1, self.head_dim)).transpose(1, 2)
    cos, sin = (part[..., : self.head_dim] for part in position_embeddings)
    query, key = _rotation(self)(query, key, cos, sin)
    scores = (query.float() @ key.float().transpose(-1, -2)).transpose(2, 3)
    count = _count(length, self.block_size)
    place = (torch.arange(count) * self.block_size).view(1, 1, count, 1, 1) + torch.arange(self.block_size)[:, None]
    scores = _blocks(scores.flatten(0, 1), self.block_size).unflatten(0, (batch, self.num_heads))
    scores = torch.where(place <= position_ids[:, None, None, None, :], scores, float("-inf"))
    best = scores.amax(dim=3).transpose(2, 3)
    back = (position_ids // self.block_size)[:, None, :, None] - torch.arange(best.shape[-1])
    best = torch.where((back >= 0) & (back < self.local_blocks), float("inf"), best)
    return _chosen(best, self.topk_blocks)


def minimax_mask(
    self: Any,
    block_indices: torch.Tensor,
    attention_mask: torch.Tensor | None,
    key_length: int,
    dtype: torch.dtype,
    device: torch.device,
    position_ids: torch.Tensor,
) -> torch.Tensor:
    """``build_block_mask`` of ``MiniMaxM3VLIndexer``: the additive mask [B,H,T,T] from the result of
    :func:`minimax_indexer`."""
    import torch

    keys = torch.arange(key_length)
    kept = block_indices.index_select(-1, keys // self.block_size)
    kept = kept.repeat_interleave(self.config.num_attention_heads // block_indices.shape[1], dim=1)
    if attention_mask is None:
        seen = keys <= position_ids[:, None, :, None]
    else:
        seen = attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
    return torch.where(kept & seen, torch.zeros((), dtype=dtype), torch.finfo(dtype).min)


def qwen_indexer(
    self: Any, hidden_states: torch.Tensor, position_embeddings: Any, attention_mask: torch.Tensor, cache: Any
) -> torch.Tensor:
    """The forward of ``Qwen4ExpTextQSAIndexer``, where every query may see all tokens before it. Returns the mask
    [B,1,T,T]."""
    import torch

    _check_stateless(cache)
    batch, length, _ = hidden_states.shape
    size, width = self.compress_ratio, self.index_head_dim
    parts = [self.index_n_heads * width, self.index_kv_heads * width]
    query, key = torch.split(self.index_qk_proj(hidden_states), parts, dim=-1)
    cos, sin = position_embeddings
    query = self.q_layernorm(query.reshape(batch, length, -1, width))
    query = _rotation(self)(query, cos=cos, sin=sin, unsqueeze_dim=2).float()
    key = self.k_layernorm(_blocks(key, size).float().mean(dim=2)).unsqueeze(2)
    cos, sin = (_blocks(part, size)[:, :, 0] for part in position_embeddings)
    key = _rotation(self)(key, cos=cos, sin=sin, unsqueeze_dim=2).float()
    scores = torch.relu(query @ key.permute(0, 2, 3, 1)).sum(dim=2) * width**-0.5
    place, block = torch.arange(length), torch.arange(key.shape[1])
    full = block < ((place + 1) // size)[:, None]
    chosen = _chosen(torch.where(full, scores, float("-inf")), self.block_topk) | ~full
    kept = chosen.index_select(-1, place // size) & (place <= place[:, None])
    return kept.unsqueeze(1)


def deepseek_heavy(
    self: Any, hidden_states: torch.Tensor, q_residual: Any, position_ids: torch.Tensor, cache: Any, layer_idx: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The forward of ``DeepseekV4HCACompressor``. Returns keys [B,1,n,w] of blocks, and the bias [B,1,T,n] of the
    logits."""
    _check_stateless(cache)
    values = _blocks(self.kv_proj(hidden_states), self.compress_rate)
    gates = _blocks(self.gate_proj(hidden_states), self.compress_rate) + self.position_bias
    keys = _compressed(self, values, gates)
    return keys.unsqueeze(1), _bias(_full(self, position_ids, keys).expand(keys.shape[0], -1, -1))


def deepseek_sparse(
    self: Any, hidden_states: torch.Tensor, q_residual: Any, position_ids: torch.Tensor, cache: Any, layer_idx: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The forward of ``DeepseekV4CSACompressor``. Returns the same as :func:`deepseek_heavy`."""
    keys = _overlapping(self, hidden_states)
    return keys.unsqueeze(1), _bias(self.indexer(hidden_states, q_residual, position_ids, cache, layer_idx))


def deepseek_indexer(
    self: Any, hidden_states: torch.Tensor, q_residual: Any, position_ids: torch.Tensor, cache: Any, layer_idx: int
) -> torch.Tensor:
    """The forward of ``DeepseekV4Indexer``, with another result: whether a query attends to a block [B,T,n]."""
    import torch

    _check_stateless(cache)
    batch, length, _ = hidden_states.shape
    keys = _overlapping(self, hidden_states)
    cos, sin = self.rotary_emb(hidden_states, position_ids=position_ids, layer_type=self.rope_layer_type)
    query = self.q_b_proj(q_residual).view(batch, length, -1, self.head_dim).transpose(1, 2)
    scores = self.scorer(_rotation(self)(query, cos, sin).transpose(1, 2), keys, hidden_states)
    scores = torch.where(_full(self, position_ids, keys), scores, float("-inf"))
    return _chosen(scores, self.index_topk)


def _overlapping(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """Compute keys [B,n,w] of blocks. Each is compressed from the second half of its own tokens' features and the first
    half of those of the block before."""
    import torch

    size, width = self.compress_rate, self.head_dim
    values = _blocks(self.kv_proj(hidden_states), size)
    gates = _blocks(self.gate_proj(hidden_states), size) + self.position_bias
    block = torch.arange(values.shape[1])
    values, gates = (
        torch.cat([part.index_select(1, (block - 1).clamp(min=0))[..., :width], part[..., width:]], dim=2)
        for part in (values, gates)
    )
    has_values = (block[:, None] > 0) | (torch.arange(2 * size) >= size)
    return _compressed(self, values, torch.where(has_values[..., None], gates, float("-inf")))


def _compressed(self: Any, values: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """Compute keys [B,n,w]: means of ``values`` [B,n,m,w] weighted by ``gates``, with the rotary embedding of the
    position where their block begins."""
    import torch

    keys = self.kv_norm((values * gates.softmax(dim=2)).sum(dim=2))
    places = (torch.arange(keys.shape[1]) * self.compress_rate).unsqueeze(0).expand(keys.shape[0], -1)
    cos, sin = self.rotary_emb(keys, position_ids=places, layer_type=self.rope_layer_type)
    return _rotation(self)(keys.unsqueeze(1), cos, sin).squeeze(1)


def _full(self: Any, position_ids: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Whether a query has all tokens of a block before it, [B,T,n]."""
    import torch

    return torch.arange(keys.shape[1]) < ((position_ids + 1) // self.compress_rate).unsqueeze(-1)


def _bias(kept: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.where(kept, 0.0, float("-inf")).unsqueeze(1)


def _chosen(scores: torch.Tensor, most: int) -> torch.Tensor:
    """Whether an entry is among the ``most`` highest along the last axis, and above -inf."""
    import torch

    best = scores.topk(smallest(most, scores.shape[-1]), dim=-1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True) & (scores > float("-inf"))


def _count(length: int, size: int) -> int:
    """Number of blocks of ``size`` that hold ``length`` tokens, plus one, because PyTorch specialises on a size of
    1."""
    return (length + size - 1) // size + 1


def _blocks(sequence: torch.Tensor, size: int) -> torch.Tensor:
    """Cut [B,T,w] into blocks [B,n,size,w], padded with copies of the last token."""
    import torch

    batch, length, width = sequence.shape
    count = _count(length, size)
    place = torch.arange(count * size).clamp(max=length - 1)
    return sequence.index_select(1, place).reshape(batch, count, size, width)


def _rotation(self: Any) -> Any:
    """The function for rotary embeddings of queries and keys in the file that defines a module."""
    return sys.modules[type(self).__module__].apply_rotary_pos_emb


def _check_stateless(cache: Any) -> None:
    if cache is not None:
        raise UnsupportedError("attention to blocks of keys is exported without a cache")
