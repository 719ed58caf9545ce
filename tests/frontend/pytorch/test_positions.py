"""Positions of models that count each run's tokens from 0: they continue the cache."""

from __future__ import annotations

from typing import Any

import pytest

from moec.frontend.pytorch.exportable import exportable
from moec.frontend.pytorch.text_cache import name_of_cache

torch = pytest.importorskip("torch", reason='needs the extra "torch": pip install "moec[torch]"')
transformers = pytest.importorskip(
    "transformers", minversion="5.0", reason='needs the extra "torch": pip install "moec[torch]"'
)

FIRST, COUNT = 5, 9


@pytest.fixture(scope="module")
def bamba() -> Any:
    torch.manual_seed(0)
    config = transformers.BambaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, attn_layer_indices=[0],
        num_attention_heads=4, num_key_value_heads=2, mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=1,
        mamba_d_state=8,
    )  # fmt: skip
    module = transformers.BambaForCausalLM(config).eval()
    for parameter in module.parameters():
        parameter.data *= 3  # attention then tells positions apart
    return module


def in_parts(module: Any, ids: Any, **second: Any) -> Any:
    """Logits of the tokens behind the first ones, with the cache of these."""
    name = name_of_cache(module.forward)
    with torch.no_grad(), exportable(module):
        cache = getattr(module(ids[:, :FIRST], use_cache=True), name)
        return module(ids[:, FIRST:], use_cache=True, **{name: cache}, **second).logits


def test_positions_continue_the_cache(bamba):
    ids = torch.arange(COUNT).unsqueeze(0)
    with torch.no_grad():
        expected = bamba(ids, use_cache=False).logits[:, FIRST:]
    torch.testing.assert_close(in_parts(bamba, ids), expected, rtol=0, atol=1e-4)


def test_positions_that_are_given_stay(bamba):
    ids = torch.arange(COUNT).unsqueeze(0)
    from_zero = torch.arange(COUNT - FIRST).unsqueeze(0)
    assert not torch.allclose(in_parts(bamba, ids, position_ids=from_zero), in_parts(bamba, ids), atol=1e-3)
