"""Positions of tokens behind those in a cache, for models of transformers that count each run's tokens from 0."""

from __future__ import annotations

from typing import Any


def behind_the_cache(self: Any, input_ids: Any = None, **others: Any) -> Any:
    """Run ``forward`` of a model's decoder with position ids [1, length] that continue the cache, where none are given.

    Bamba's forward begins at 0, because transformers' ``generate`` gives the positions."""
    import torch

    cache = others.get("cache", others.get("past_key_values"))
    if cache is not None and others.get("position_ids") is None:
        tokens, past = others["inputs_embeds"] if input_ids is None else input_ids, cache.get_seq_length()
        others["position_ids"] = torch.arange(past, past + tokens.shape[1], device=tokens.device).unsqueeze(0)
    return type(self).forward(self, input_ids=input_ids, **others)
